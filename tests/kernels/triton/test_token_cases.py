import pytest
import torch

from vitslim.errors import ConfigError

pytest.importorskip("triton")
from vitslim.kernels.triton.token_cases import SELECTION, selection_target, token_cases

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_both_sides_of_a_case_compute_the_same(device: str) -> None:
    cases = token_cases(device, torch.float32, 17, 2)
    assert set(SELECTION) < {case.name for case in cases}
    for case in cases:
        assert case.tokens == 17
        assert case.bytes > 0
        if case.name == "selection":
            continue  # beside its target, which is no selection
        torch.testing.assert_close(case.call(), case.dense(), atol=1e-3, rtol=1e-3)


def test_a_convolution_counts_its_taps() -> None:
    convolution = next(case for case in token_cases("cpu", torch.float32, 17, 2) if case.name.startswith("convolution"))
    assert convolution.flops == 2 * 2 * 16 * 768 * 25
    assert convolution.bytes == 2 * 2 * 16 * 768 * 4


def test_a_whole_selection_has_its_parts_work_and_stands_beside_its_target() -> None:
    cases = {case.name: case for case in token_cases("cpu", torch.float32, 17, 2)}
    whole, parts = cases["selection"], [cases[name] for name in SELECTION]
    assert whole.call().shape == (2, 1 + 8, 384)  # a class token and half of the patches
    torch.testing.assert_close(whole.call()[:, 0], cases["gather and split"].call()[:, 0])
    assert (whole.bytes, whole.flops) == (sum(one.bytes for one in parts), sum(one.flops for one in parts))
    assert whole.dense().shape == (2, 17, 384)


def test_the_target_passes_over_the_tokens() -> None:
    assert selection_target("cpu", torch.bfloat16, 17, 2)().shape == (2, 17, 384)


def test_tokens_that_are_no_square_are_refused() -> None:
    with pytest.raises(ConfigError, match="30 tokens are no class token and a square of patches; choose from"):
        token_cases("cpu", torch.float32, 30, 1)
