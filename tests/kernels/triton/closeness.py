"""How close a kernel comes to its reference in float64, and on which devices the kernels can be tried."""

import os

import pytest
import torch
from torch import Tensor

# Compiled on a GPU; interpreted elsewhere, which ``TRITON_INTERPRET`` asks for before triton is imported.
DEVICES = [
    pytest.param("cuda", marks=pytest.mark.gpu),
    pytest.param(
        "cpu",
        marks=pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="Triton's interpreter is not on"),
    ),
]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def drawn(*shape: int, dtype: torch.dtype, device: str, seed: int = 0, scale: float = 1.0) -> Tensor:
    values = scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return values.to(device, dtype)


def require_close(found: Tensor, exact: Tensor, *, roundings: float = 2.0) -> None:
    """The norm of the difference over that of the reference, in units of the type's rounding.

    Operands are rounded before the reference sees them and the kernels sum in float32, so what is left is the rounding
    of the result, at most half a unit. In float32 the order of the sums adds a few units.
    """
    assert found.shape == exact.shape
    off = (found.double().cpu() - exact.double().cpu()).norm() / exact.double().cpu().norm().clamp_min(1e-30)
    units = 16.0 if found.dtype == torch.float32 else roundings
    assert off <= units * torch.finfo(found.dtype).eps, f"relative error {off:.2e} in {found.dtype}"
