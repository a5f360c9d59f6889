import pytest
import torch

pytest.importorskip("triton")
from vitslim.kernels.triton.launching import dot_precision


@pytest.fixture
def matmul(monkeypatch: pytest.MonkeyPatch):
    """Torch's switch for products in float32; afterwards it is as it was."""
    switch = torch.backends.cuda.matmul
    before = switch.fp32_precision
    yield switch
    switch.fp32_precision = before


@pytest.mark.parametrize(("allowed", "passes"), [("tf32", "tf32"), ("ieee", "tf32x3")])
def test_float32_goes_through_one_pass_only_where_torch_may(allowed: str, passes: str, matmul) -> None:
    matmul.fp32_precision = allowed
    assert dot_precision(torch.zeros(1)) == passes
    assert dot_precision(torch.zeros(1, dtype=torch.float16)) == "tf32"


@pytest.mark.parametrize(("allowed", "passes"), [("high", "tf32"), ("highest", "tf32x3")])
def test_the_older_switch_counts_too(allowed: str, passes: str, matmul) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    assert dot_precision(torch.zeros(1)) == passes
    torch.set_float32_matmul_precision(before)
