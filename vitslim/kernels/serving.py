"""Whether a Triton kernel takes the place of torch's own operators."""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def kernels_serve(tensor: Tensor) -> bool:
    """Whether the kernels run where this tensor lies: an NVIDIA GPU with Triton, and nobody traces a file.

    A file (ONNX, ``.pt2``, AOTInductor) is opened by others, so it is written in standard operators.
    """
    if not tensor.is_cuda or tensor.dtype not in _DTYPES or not _has_triton():
        return False
    return not (torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export())


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None and torch.version.cuda is not None
