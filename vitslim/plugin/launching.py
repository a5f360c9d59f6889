"""The kernel called on torch's CUDA tensors, without TensorRT."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitslim.errors import CheckFailedError, ConfigError, MissingDependencyError, VitslimError
from vitslim.plugin.libraries import kernels_library

LARGEST_HEAD_WIDTH = 128
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_INVALID_VALUE = 1  # cudaErrorInvalidValue
# cudaErrorInsufficientDriver, NoDevice, NoKernelImageForDevice, UnsupportedPtxVersion
_UNFIT_MACHINE = (35, 100, 209, 222)


def launch(
    query: Float[Tensor, "b h n e"],
    key: Float[Tensor, "b h n e"],
    value: Float[Tensor, "b h n e"],
    kept: Int[Tensor, "b h t k"],
    *,
    tile: int,
    prefix: int,
    scale: float,
) -> Float[Tensor, "b h n e"]:
    """``vitslim.kernels.sparse_attention`` by the built CUDA kernel, on the current stream; no gradient, no bias.

    Args:
        query: on a CUDA device, fp32, fp16 or bf16; head width up to 128.
        kept: token indices of the keys of each tile; they are not checked.
        tile: patch queries per tile.
        prefix: tokens at the front that are no patches.
        scale: factor of the scores.

    Raises:
        ConfigError: tensors on a CPU, of different or other types, or of shapes that do not fit.
        MissingDependencyError: the library is not built, or not for this GPU.
        CheckFailedError: CUDA refused the launch for another reason.
    """
    _check(query, key, value, kept)
    library = _loaded(_required_library())
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    kept = kept.to(torch.int32).contiguous()
    mixed = torch.empty_like(query)
    numbers = [_TYPES[query.dtype], *query.shape, *kept.shape[2:], tile, prefix]
    with torch.cuda.device(query.device):
        stream = torch.cuda.current_stream().cuda_stream
        pointers = [part.data_ptr() for part in (query, key, value, kept, mixed)]
        status = library.vitslim_sparse_attention(*pointers, *numbers, scale, stream)
    if status != 0:
        text = library.vitslim_error_text(status).decode()
        raise _refusal(text, status, f"query {tuple(query.shape)}, kept {tuple(kept.shape)}, {tile=}, {prefix=}")
    return mixed


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the types of the C interface."""
    arguments = [*[ctypes.c_void_p] * 5, *[ctypes.c_int] * 9, ctypes.c_float, ctypes.c_void_p]
    library.vitslim_sparse_attention.argtypes = arguments
    library.vitslim_sparse_attention_by.argtypes = [ctypes.c_int, *arguments]
    library.vitslim_error_text.argtypes = [ctypes.c_int]
    library.vitslim_error_text.restype = ctypes.c_char_p
    library.vitslim_kernels_version.restype = ctypes.c_char_p
    return library


@cache
def _loaded(path: Path) -> ctypes.CDLL:
    try:
        return declare(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as error:
        raise ConfigError(f"{path} is no kernel library of vitslim ({error}); run `vitslim plugin build`") from error


def _required_library() -> Path:
    path = kernels_library()
    if path is None:
        raise MissingDependencyError("the CUDA kernel is not built; run `vitslim plugin build` (needs nvcc, no GPU)")
    return path


def _check(query: Tensor, key: Tensor, value: Tensor, kept: Tensor) -> None:
    floats = (query, key, value)
    devices = {str(part.device) for part in (*floats, kept)}
    if len(devices) > 1 or query.device.type != "cuda":
        raise ConfigError(f"tensors on {', '.join(sorted(devices))}; the CUDA kernel wants all on one GPU")
    if len({part.dtype for part in floats}) > 1 or query.dtype not in _TYPES:
        given = ", ".join(str(part.dtype) for part in floats)
        raise ConfigError(f"query, key, value are {given}; wanted all fp32, all fp16 or all bf16")
    fits = query.ndim == kept.ndim == 4 and query.shape == key.shape == value.shape
    if not fits or query.shape[:2] != kept.shape[:2] or query.shape[3] > LARGEST_HEAD_WIDTH:
        given = ", ".join(str(tuple(part.shape)) for part in (*floats, kept))
        raise ConfigError(
            f"query, key, value, kept have shapes {given}; wanted three times (b, h, n, e) with e up to "
            f"{LARGEST_HEAD_WIDTH}, and (b, h, tiles, k)"
        )


def _refusal(text: str, status: int, operands: str) -> VitslimError:
    if status == _INVALID_VALUE:
        return ConfigError(f"the CUDA kernel does not take {operands}: wanted ceil((n - prefix) / tile) key sets")
    if status in _UNFIT_MACHINE:
        return MissingDependencyError(
            f"the CUDA kernel cannot run here ({text}); build it for this GPU with `vitslim plugin build --arch ...`, "
            "or update the driver"
        )
    return CheckFailedError(f"the CUDA kernel did not start: {text} ({operands})")
