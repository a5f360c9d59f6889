"""The ops on a GPU where no kernel serves: the same plain forms as on a CPU."""

import pytest
import torch
from torch import Tensor

from tests.kernels.on_kernels import FORMS_ON_GPU, form_on_gpu, operands


def tensors(found: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


@pytest.mark.parametrize("name", FORMS_ON_GPU)
def test_where_no_kernel_serves_the_op_is_its_plain_form(name: str) -> None:
    # No kernel takes float64.
    given = operands(name, torch.float64, "cpu", parameters=torch.float64)
    op = getattr(torch.ops.vitslim, name)
    for found, expected in zip(tensors(form_on_gpu(name)(*given)), tensors(op(*given)), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
