"""Whether a Triton kernel takes the place of torch's own operators."""

from importlib.util import find_spec

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# A constant, since torch.compile traces the question and could not look for a package.
_HAS_TRITON = find_spec("triton") is not None and torch.version.cuda is not None


def kernels_serve(tensor: Tensor) -> bool:
    """Whether the kernels run where this tensor lies: an NVIDIA GPU with Triton, and nobody traces a file.

    A file (ONNX, ``.pt2``, AOTInductor) is opened by others, so it is written in standard operators.
    """
    return tensor.is_cuda and tensor.dtype in _DTYPES and _HAS_TRITON and not traces_a_file()


def traces_a_file() -> bool:
    """Whether torch.export or torch.onnx is at work."""
    return torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export()
