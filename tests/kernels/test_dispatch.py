"""When Triton's kernels take the place of torch's operators."""

from collections.abc import Iterator
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from vitslim.errors import ConfigError
from vitslim.kernels import dispatch
from vitslim.targets.quiet import captured


class FakeOnGpu:
    """A tensor as the check sees it."""

    is_cuda = True
    device = torch.device("cuda", 0)
    shape = (8, 197, 384)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


ANSWERS: list[bool] = []


class Asking(nn.Module):
    """Asks, while a file is traced, for a tensor on a GPU."""

    def forward(self, images: Tensor) -> Tensor:
        ANSWERS.append(question(torch.float32))
        return images + 1.0


def question(dtype: torch.dtype, tokens: int = 197) -> bool:
    # Without the run-time shape checks, which know that this is no tensor.
    asked = getattr(dispatch.use_triton, "__wrapped__", dispatch.use_triton)
    return asked(FakeOnGpu(dtype), "skip_function", tokens)


@pytest.fixture(autouse=True)
def an_a100_with_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dispatch, "_HAS_TRITON", True)
    monkeypatch.setattr(dispatch._switch, "mode", "1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    dispatch._capability.cache_clear()
    yield
    dispatch._capability.cache_clear()


def test_the_kernels_take_three_types_on_a_gpu() -> None:
    assert all(question(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16))
    assert not question(torch.float64)
    assert not dispatch.use_triton(torch.zeros(1), "skip_function", 1)


def test_what_was_not_measured_is_left_to_torch() -> None:
    with dispatch.triton_mode("auto"):
        assert not question(torch.float16)
    with dispatch.triton_mode("0"):
        assert not question(torch.float16)
    assert question(torch.float16)


def cell(images: int, tokens: int, speedup: float) -> dispatch.Measured:
    return dispatch.Measured("skip_function", "8.0", "float16", images, tokens, speedup)


CELLS = [cell(1, 197, 0.9), cell(8, 197, 1.1), cell(256, 197, 1.2), cell(8, 577, 1.01), cell(8, 1025, 1.3)]


@pytest.mark.parametrize(
    ("measured", "tokens", "used"),
    [
        (CELLS, 197, True),
        (CELLS, 99, True),  # of a model of 197
        (CELLS, 198, False),  # of one of 577
        (CELLS, 1024, True),
        (CELLS, 1026, False),
        (CELLS[:2], 197, True),
        (CELLS[1:3], 197, True),
        ([cell(1, 197, 1.1), cell(256, 197, 1.1)], 197, True),
        ([cell(1, 197, 1.1), cell(256, 197, 0.9)], 197, False),
        ([cell(16, 197, 1.1)], 197, False),
        ([cell(4, 197, 1.1)], 197, False),
        ([CELLS[1]._replace(family="token_selection")], 197, False),
        ([CELLS[1]._replace(capability="9.0")], 197, False),
        ([CELLS[1]._replace(dtype="bfloat16")], 197, False),
    ],
)
def test_auto_uses_what_was_measured_to_gain(
    measured: list[dispatch.Measured], tokens: int, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "measurements", lambda: tuple(measured))
    with dispatch.triton_mode("auto"):
        assert question(torch.float16, tokens) is used  # of 8 images


def test_the_committed_measurements_can_be_read() -> None:
    assert all(one.family in get_args(dispatch.Family) for one in dispatch.measurements())


def test_an_unknown_answer_of_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSLIM_TRITON", "yes")
    with pytest.raises(ConfigError, match="VITSLIM_TRITON='yes': wanted auto, 0, 1"):
        dispatch._asked()
    monkeypatch.setenv("VITSLIM_TRITON", "0")
    assert dispatch._asked() == "0"


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

    assert not dispatch.use_triton(torch.zeros(2), "skip_function", 2)
    compiled = torch.compile(answered, fullgraph=True, backend="eager")
    assert torch.equal(compiled(torch.zeros(2)), torch.ones(2))
    assert torch.equal(compiled(torch.zeros(2, dtype=torch.float64)), torch.zeros(2, dtype=torch.float64))


@pytest.mark.compiled
def test_a_change_of_the_switch_compiles_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def answered(images: Tensor) -> Tensor:
        wanted = dispatch._switch.mode == "1" or dispatch._gains(
            "skip_function", images.dtype, images.device.index, images.shape[0], images.shape[1]
        )
        return images + 1.0 if wanted else images

    gains = dispatch.Measured("skip_function", "8.0", "float32", images=4, tokens=3, speedup=1.1)
    monkeypatch.setattr(dispatch, "measurements", lambda: (gains,))
    compiled = torch.compile(answered, fullgraph=True, backend="eager")
    for mode, images, added in (("1", 2, 1.0), ("auto", 2, 0.0), ("auto", 4, 1.0), ("0", 2, 0.0), ("1", 2, 1.0)):
        with dispatch.triton_mode(mode):
            assert torch.equal(compiled(torch.zeros(images, 3)), torch.full((images, 3), added))
