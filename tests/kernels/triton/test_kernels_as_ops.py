"""What the kernels give lies in memory as the ops' fake forms tell the compiler, which relies on it."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.kernels.on_kernels import FORMS_ON_GPU, form_on_gpu, operands, through_ops
from tests.kernels.triton.closeness import DEVICES

pytest.importorskip("triton")

ops = torch.ops.vitslim


def layouts(found: Tensor | tuple[Tensor, ...]) -> list[tuple[Any, ...]]:
    parts = [found] if isinstance(found, Tensor) else found
    return [(part.shape, part.stride(), part.dtype) for part in parts]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FORMS_ON_GPU)
def test_the_compiler_knows_how_results_lie(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    through_ops(monkeypatch)
    # In bfloat16, where a result of another type is seen.
    given = operands(name, torch.bfloat16, device)
    before = [part.clone() if isinstance(part, Tensor) else part for part in given]
    found = layouts(form_on_gpu(name)(*given))
    with FakeTensorMode() as mode:
        unreal = [mode.from_tensor(part) if isinstance(part, Tensor) else part for part in given]
        assert found == layouts(getattr(ops, name)(*unreal))
    for part, kept in zip(given, before, strict=True):
        assert torch.equal(part, kept) if isinstance(part, Tensor) else part == kept
