"""Whether a Triton kernel takes the place of torch's own operators."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Older ones have neither bfloat16 nor the tensor cores that the kernels are compiled for.
_LEAST_CAPABILITY = (8, 0)

# A constant, since torch.compile traces the check and could not look for a package.
_HAS_TRITON = find_spec("triton") is not None and torch.version.cuda is not None


def use_triton(tensor: Tensor) -> bool:
    """Whether the kernels run where this tensor lies: an NVIDIA GPU since Ampere with Triton, and no file is traced.

    A file (ONNX, ``.pt2``, AOTInductor) is opened by others, so it is written in standard operators.
    """
    return tensor.is_cuda and _is_supported(tensor.dtype, tensor.device.index)


# A constant to torch.compile, which in torch 2.11 takes its own tracing for an export.
@torch.compiler.assume_constant_result
def traces_a_file() -> bool:
    """Whether torch.export or torch.onnx is at work."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()


def _is_supported(dtype: torch.dtype, device: int | None) -> bool:
    return dtype in _DTYPES and _HAS_TRITON and not traces_a_file() and _is_recent(device)


@torch.compiler.assume_constant_result
def _is_recent(device: int | None) -> bool:
    return _capability(device) >= _LEAST_CAPABILITY


@cache
def _capability(device: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
