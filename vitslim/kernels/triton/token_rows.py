"""What every launch on tokens needs: rows that are dense in memory, the right device, the compiler's options."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

PROGRAMS = 1024
"""About eight programs for each of an H100's 132 SMs; where images and channels make fewer, work is cut finer."""


def rows_of(tokens: Tensor) -> Tensor:
    """The same tokens with adjacent channels; slices of images and of channels are as they are."""
    return tokens if tokens.stride(-1) == 1 else tokens.contiguous()


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device_of(tensor)


def options(warps: int = 4) -> dict[str, Any]:
    """For the launch. Fused multiply-add is said outright, since Triton 3.10 changes its default."""
    return {"num_warps": warps, "enable_fp_fusion": True}
