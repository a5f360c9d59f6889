"""What holds for every op: what torch asks of a custom op, and the plain form where a GPU's kernels do not apply."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.on_kernels import FORMS_ON_GPU, form_on_gpu, operands

OPS = [*FORMS_ON_GPU, "kept_keys", "sparse_attention with a bias"]
WITHOUT_GRADIENT = {"kept_keys", "depthwise_gelu_backward"}
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")


def tensors(found: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


@pytest.mark.parametrize("name", FORMS_ON_GPU)
def test_where_no_kernel_applies_the_op_is_its_plain_form(name: str) -> None:
    # No kernel takes float64.
    given = operands(name, torch.float64, "cpu", parameters=torch.float64)
    op = getattr(torch.ops.vitslim, name)
    for found, expected in zip(tensors(form_on_gpu(name)(*given)), tensors(op(*given)), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def given_to(name: str) -> tuple[Any, ...]:
    if name == "kept_keys":
        return torch.rand(2, 3, 15, 4), torch.rand(4, 17), 2, 6, 4, 2
    given = operands(name.split()[0], torch.float32, "cpu")
    return (*given[:4], torch.zeros(1, 3, 37, 37), *given[5:]) if name.endswith("bias") else given


# opcheck itself reads the gradient of a tensor that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    ("name", "grad"),
    [(name, grad) for name in OPS for grad in (False, True) if not grad or name not in WITHOUT_GRADIENT],
)
def test_the_ops_hold_what_torch_asks_of_them(name: str, grad: bool) -> None:
    given = [
        part.detach().requires_grad_(grad and part.is_floating_point()) if isinstance(part, Tensor) else part
        for part in given_to(name)
    ]
    torch.library.opcheck(getattr(torch.ops.vitslim, name.split()[0]), tuple(given), test_utils=CHECKS)
