"""What every launch of an attention kernel needs: strides, padded widths, precision, the right device."""

from contextlib import AbstractContextManager
from typing import Any

import torch
import triton
from torch import Tensor

TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
"""How Triton calls the element types."""


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
    """How tensor cores multiply float32: in one pass of 10 bits if torch may, else in three, near float32's own."""
    allowed = tensor.dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest"
    return "tf32" if allowed or tensor.dtype != torch.float32 else "tf32x3"


def on_device_of(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    return torch.cuda.device_of(tensor)
