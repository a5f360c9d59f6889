"""How close a kernel comes to its reference in float64, and on which devices the kernels can be tried."""

import os
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch
from torch import Tensor


def interprets() -> bool:
    """Whether ``TRITON_INTERPRET`` is on, as tests/conftest.py has it without a GPU, and can be relied on.

    Interpreters before Triton 3.9 turn arrays of one number into loop bounds in a way that NumPy has given up.
    """
    try:
        installed = tuple(int(part) for part in version("triton").split(".")[:2])
    except PackageNotFoundError:
        return False
    return os.environ.get("TRITON_INTERPRET") == "1" and installed >= (3, 9)


DEVICES = [
    pytest.param("cuda", marks=pytest.mark.gpu),
    pytest.param("cpu", marks=pytest.mark.skipif(not interprets(), reason="Triton's interpreter is off or too old")),
]

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def sizes_in_types(sizes: Sequence[object], large: Sequence[object] = (), types: Sequence[object] = DTYPES) -> list:
    """Parameters (size, type, device): all of them on a GPU, and there ``large`` sizes too.

    The interpreter gets every size in one type, the types in turn: what is wrong with an index or a mask is so in all
    types, what is wrong with a type at all sizes. The other pairs are slow.
    """
    gpu, cpu = (one.marks for one in DEVICES)
    rest = (*cpu, pytest.mark.slow)
    pairs = [(size, kind, (i - j) % len(types)) for i, size in enumerate(sizes) for j, kind in enumerate(types)]
    return [
        *(pytest.param(size, kind, "cuda", marks=gpu) for size in (*sizes, *large) for kind in types),
        *(pytest.param(size, kind, "cpu", marks=rest if apart else cpu) for size, kind, apart in pairs),
    ]


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
