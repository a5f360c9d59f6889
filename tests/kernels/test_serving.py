"""When Triton's kernels take the place of torch's operators."""

import pytest
import torch
from torch import Tensor, nn

from vitslim.export.quiet import captured
from vitslim.kernels import serving


class FakeOnGpu:
    """A tensor as the question sees it."""

    is_cuda = True

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
    asked = getattr(serving.kernels_serve, "__wrapped__", serving.kernels_serve)
    return asked(FakeOnGpu(dtype))


@pytest.fixture(autouse=True)
def triton_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_HAS_TRITON", True)


def test_kernels_serve_three_types_on_a_gpu() -> None:
    assert all(question(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16))
    assert not question(torch.float64)
    assert not serving.kernels_serve(torch.zeros(1))


def test_without_triton_torch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_HAS_TRITON", False)
    assert not question(torch.float32)


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
def test_the_question_can_be_compiled() -> None:
    # Without a GPU the first part of the question settles it; here each part is asked.
    def answered(images: Tensor) -> Tensor:
        known = images.dtype in serving._DTYPES and serving._HAS_TRITON and not serving.traces_a_file()
        return images + 1.0 if known else images

    compiled = torch.compile(answered, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(2)), torch.ones(2))
