"""What every launch of a kernel needs: strides, padded widths, precision, how many programs, the right device."""

from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
from torch import Tensor

PROGRAMS = 1024
"""About eight programs for each of an H100's 132 SMs; where images and channels make fewer, work is cut finer."""


def rows_of(tensor: Tensor) -> Tensor:
    """The tensor with its last axis dense in memory; the heads of a joined projection are as they are."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def strides_of(*tensors: Tensor) -> list[int]:
    """Strides over image, head and token of each (b, h, n, e)."""
    return [tensor.stride(axis) for tensor in tensors for axis in range(3)]


def padded(width: int) -> int:
    """The block that holds so many features; tensor cores want a power of two, 16 or more."""
    return max(16, triton.next_power_of_2(width))


def dot_precision(tensor: Tensor) -> str:
    """How blocks are multiplied; sums are always in float32.

    float32 goes through tensor cores in one pass of 10 bits if torch may do so (``torch.backends.cuda.matmul``), else
    in three passes, near float32's own precision. Triton's interpreter would multiply the bits of bfloat16 as integers:
    there the operands are widened first.
    """
    if tensor.dtype == torch.bfloat16 and not tensor.is_cuda:
        return "widened"
    # The older question, ``get_float32_matmul_precision``, raises where this one has been settled on its own.
    if tensor.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "tf32x3"
    return "tf32"


def launch(kernel: Any, programs: int | tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Run so many programs of a kernel, along one axis or up to three.

    Fused multiply-add is said outright: Triton 3.10 changes its default, and 3.9 warns of that.
    """
    grid = programs if isinstance(programs, tuple) else (programs,)
    kernel[grid](*arguments, enable_fp_fusion=True, **constants)


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device_of(tensor)
