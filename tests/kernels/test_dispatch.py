"""When Triton's kernels take the place of torch's operators."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from vitslim.kernels import dispatch
from vitslim.targets.quiet import captured


class FakeOnGpu:
    """A tensor as the check sees it."""

    is_cuda = True
    device = torch.device("cuda", 0)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


ANSWERS: list[bool] = []


class Asking(nn.Module):
    """Asks, while a file is traced, for a tensor on a GPU."""

    def forward(self, images: Tensor) -> Tensor:
        ANSWERS.append(question(torch.float32))
        return images + 1.0


def question(dtype: torch.dtype) -> bool:
    # Without the run-time shape checks, which know that this is no tensor.
    asked = getattr(dispatch.use_triton, "__wrapped__", dispatch.use_triton)
    return asked(FakeOnGpu(dtype))


@pytest.fixture(autouse=True)
def an_a100_with_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dispatch, "_HAS_TRITON", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    dispatch._capability.cache_clear()
    yield
    dispatch._capability.cache_clear()


def test_the_kernels_take_three_types_on_a_gpu() -> None:
    assert all(question(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16))
    assert not question(torch.float64)
    assert not dispatch.use_triton(torch.zeros(1))


def test_without_triton_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_HAS_TRITON", False)
    assert not question(torch.float32)


@pytest.mark.parametrize(("capability", "used"), [((7, 5), False), ((8, 9), True), ((12, 0), True)])
def test_gpus_before_ampere_are_left_to_torch(
    capability: tuple[int, int], used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    dispatch._capability.cache_clear()
    assert question(torch.float16) is used


def test_files_get_torchs_own_operators() -> None:
    images = torch.zeros(2, 3)
    ANSWERS.clear()
    torch.export.export(Asking(), (images,), strict=False)
    assert ANSWERS == [False]
    pytest.importorskip("onnxscript")
    with captured():
        torch.onnx.export(Asking(), (images,), dynamo=True, verbose=False)
    assert len(ANSWERS) > 1
    assert not any(ANSWERS)


@pytest.mark.compiled
def test_the_check_can_be_compiled() -> None:
    # Without a GPU the first part of the check settles it; here the rest is made as well.
    def answered(images: Tensor) -> Tensor:
        return images + 1.0 if dispatch._is_supported(images.dtype, images.device.index) else images

    assert not dispatch.use_triton(torch.zeros(2))
    compiled = torch.compile(answered, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(2)), torch.ones(2))
    assert torch.equal(compiled(torch.zeros(2, dtype=torch.float64)), torch.zeros(2, dtype=torch.float64))
