"""The library's kernel called on torch's CUDA tensors, without TensorRT: what proves it on a GPU."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitslim.errors import CheckFailedError, ConfigError, MissingDependencyError, VitslimError
from vitslim.plugin.libraries import kernels_library

_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_INVALID_VALUE = 1
# CUDA_ERROR_NO_DEVICE, INVALID_IMAGE, NO_BINARY_FOR_GPU, INVALID_PTX, JIT_COMPILER_NOT_FOUND, UNSUPPORTED_PTX_VERSION,
# SYSTEM_DRIVER_MISMATCH
_UNFIT_MACHINE = (100, 200, 209, 218, 221, 222, 803)
_VECTOR_BYTES = 16


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
    """``vitslim.kernels.sparse_attention`` by the library's kernel, on the current stream; no gradient, no bias.

    Args:
        query: on a CUDA device, fp32, fp16 or bf16, of a head width that the library holds.
        kept: token indices of the keys of each tile; they are not checked.
        tile: patch queries per tile.
        prefix: tokens at the front that are no patches.
        scale: factor of the scores.

    Raises:
        ConfigError: tensors on a CPU, of different or other types, or of shapes that do not fit.
        MissingDependencyError: no library is built, or none for this GPU.
        CheckFailedError: CUDA refused the launch for another reason.
    """
    _check(query, key, value, kept)
    path = kernels_library()
    if path is None:
        raise MissingDependencyError("no library is built; make it with `vitslim plugin build`")
    query, key, value = _dense(query), _dense(key), _dense(value)
    mixed = torch.empty_like(query)
    with torch.cuda.device(query.device):
        stream = torch.cuda.current_stream()
        tensors = (query, key, value, _dense(kept.to(torch.int32)), mixed)
        if not torch.cuda.is_current_stream_capturing():
            stream.query()  # makes the device's context that of a new thread, which torch leaves to the first call
        launch_library(_loaded(path), tensors, tile, prefix, scale, stream.cuda_stream)
    return mixed


Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""query, key, value, kept (int32), mixed; all dense, at multiples of 16 bytes."""


def launch_library(library: ctypes.CDLL, tensors: Operands, tile: int, prefix: int, scale: float, stream: int) -> None:
    """Start the kernel of a built library.

    Raises:
        VitslimError: see ``launch``.
    """
    query, kept = tensors[0], tensors[3]
    numbers = [_TYPES[query.dtype], *query.shape, *kept.shape[2:], tile, prefix]
    status = library.vitslim_sparse_attention(*(part.data_ptr() for part in tensors), *numbers, scale, stream)
    if status != 0:
        described = f"query {tuple(query.shape)}, kept {tuple(kept.shape)}, {tile=}, {prefix=}"
        widths = library.vitslim_sparse_attention_widths().decode()
        raise _refusal(library.vitslim_error_text(status).decode(), status, described, widths)


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the types of the C interface."""
    library.vitslim_sparse_attention.argtypes = [
        *[ctypes.c_void_p] * 5,
        *[ctypes.c_int] * 9,
        ctypes.c_float,
        ctypes.c_void_p,
    ]
    library.vitslim_sparse_attention_load.argtypes = [ctypes.c_int] * 3
    library.vitslim_sparse_attention_has.argtypes = [ctypes.c_int]
    library.vitslim_error_text.argtypes = [ctypes.c_int]
    texts = (library.vitslim_error_text, library.vitslim_sparse_attention_widths, library.vitslim_kernels_version)
    for function in texts:
        function.restype = ctypes.c_char_p
    return library


@cache
def _loaded(path: Path) -> ctypes.CDLL:
    try:
        return declare(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as error:
        raise ConfigError(f"{path} is no kernel library of vitslim ({error}); run `vitslim plugin build`") from error


def _dense(part: Tensor) -> Tensor:
    part = part.contiguous()
    return part if part.data_ptr() % _VECTOR_BYTES == 0 else part.clone()


def _check(query: Tensor, key: Tensor, value: Tensor, kept: Tensor) -> None:
    floats = (query, key, value)
    devices = {str(part.device) for part in (*floats, kept)}
    if len(devices) > 1 or query.device.type != "cuda":
        raise ConfigError(f"tensors on {', '.join(sorted(devices))}; the CUDA kernel wants all on one GPU")
    if len({part.dtype for part in floats}) > 1 or query.dtype not in _TYPES:
        given = ", ".join(str(part.dtype) for part in floats)
        raise ConfigError(f"query, key, value are {given}; wanted all fp32, all fp16 or all bf16")
    fits = query.ndim == kept.ndim == 4 and query.shape == key.shape == value.shape
    if not fits or query.shape[:2] != kept.shape[:2]:
        given = ", ".join(str(tuple(part.shape)) for part in (*floats, kept))
        raise ConfigError(
            f"query, key, value, kept have shapes {given}; wanted three times (b, h, n, e), and (b, h, tiles, k)"
        )


def _refusal(text: str, status: int, operands: str, widths: str) -> VitslimError:
    if status == _INVALID_VALUE:
        return ConfigError(
            f"the CUDA kernel does not take {operands}: wanted ceil((n - prefix) / tile) key sets of 1 to n keys, an "
            f"image or more, fewer than 2^31 values in one, and a head width of {widths}, which `vitslim plugin build "
            "--widths` adds to"
        )
    if status in _UNFIT_MACHINE:
        return MissingDependencyError(
            f"the CUDA kernel cannot run here ({text}); build it for this GPU with `vitslim plugin build --arch ...`, "
            "or update the driver"
        )
    return CheckFailedError(f"the CUDA kernel did not start: {text} ({operands})")
