"""The kernel called on torch's CUDA tensors, without TensorRT: from the built library, else compiled on the spot."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitslim.errors import CheckFailedError, ConfigError, MissingDependencyError, VitslimError
from vitslim.plugin.driver import CudaError, Driver, cuda_driver
from vitslim.plugin.libraries import kernels_library
from vitslim.plugin.runtime_compiler import CompiledKernel, KernelSpec, compile_for_gpu

LARGEST_HEAD_WIDTH = 128
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_PRECISIONS: dict[torch.dtype, Literal["fp32", "fp16", "bf16"]] = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
}
_MOST_BLOCKS = 2**31 - 1
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
    """``vitslim.kernels.sparse_attention`` by the CUDA kernel, on the current stream; no gradient, no bias.

    Without a built library NVRTC, which comes with torch, compiles the kernel at the first call with a type, width,
    tile, prefix, scale; that takes some seconds.

    Args:
        query: on a CUDA device, fp32, fp16 or bf16; head width up to 128.
        kept: token indices of the keys of each tile; they are not checked.
        tile: patch queries per tile.
        prefix: tokens at the front that are no patches.
        scale: factor of the scores.

    Raises:
        ConfigError: tensors on a CPU, of different or other types, or of shapes that do not fit.
        MissingDependencyError: the library is not built for this GPU; or none is built, and there is no NVRTC.
        CheckFailedError: CUDA refused the launch for another reason.
    """
    _check(query, key, value, kept)
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    kept = kept.to(torch.int32).contiguous()
    mixed = torch.empty_like(query)
    tensors = (query, key, value, kept, mixed)
    library = kernels_library()
    with torch.cuda.device(query.device):
        stream = torch.cuda.current_stream().cuda_stream
        if library is not None:
            launch_library(_loaded(library), tensors, tile, prefix, scale, stream)
        else:
            _check_sizes(query, kept, tile, prefix)
            spec = KernelSpec(_PRECISIONS[query.dtype], query.shape[3], tile, prefix, float(scale))
            device = torch.cuda.current_device()
            driver = _entered(device)
            launch_compiled(driver, *_on_device(spec, device), tensors, spec, stream)
    return mixed


Operands = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""query, key, value, kept (int32), mixed; all contiguous."""


def launch_library(library: ctypes.CDLL, tensors: Operands, tile: int, prefix: int, scale: float, stream: int) -> None:
    """Start the kernel of a built library.

    Raises:
        VitslimError: see ``launch``.
    """
    query, kept = tensors[0], tensors[3]
    numbers = [_TYPES[query.dtype], *query.shape, *kept.shape[2:], tile, prefix]
    status = library.vitslim_sparse_attention(*(part.data_ptr() for part in tensors), *numbers, scale, stream)
    if status != 0:
        raise _refusal(library.vitslim_error_text(status).decode(), status, _described(query, kept, tile, prefix))


def launch_compiled(
    driver: Driver, kernel: CompiledKernel, function: ctypes.c_void_p, tensors: Operands, spec: KernelSpec, stream: int
) -> None:
    """Start a kernel that NVRTC compiled for ``spec``; the sizes fit it.

    Raises:
        VitslimError: see ``launch``.
    """
    query, key, value, kept, mixed = tensors
    images, heads, tokens, _ = query.shape
    tiles, keys = kept.shape[2:]
    blocks = images * heads * kernel.blocks_per_head(tiles, spec.tile, spec.prefix)
    inputs = [ctypes.c_void_p(part.data_ptr()) for part in (query, key, value, kept)]
    sizes = [ctypes.c_int(size) for size in (tokens, tiles, keys)]
    described = _described(query, kept, spec.tile, spec.prefix)
    if blocks > _MOST_BLOCKS:
        raise ConfigError(
            f"the CUDA kernel does not take {described}: more than {_MOST_BLOCKS} blocks; split the batch"
        )
    try:
        driver.start(function, blocks, kernel.threads, [*inputs, *sizes, ctypes.c_void_p(mixed.data_ptr())], stream)
    except CudaError as error:
        raise _refusal(error.text, error.status, described) from None


def _entered(device: int) -> Driver:
    driver = cuda_driver()
    try:
        driver.enter(device)
    except CudaError as error:
        raise _refusal(error.text, error.status, f"device {device}") from None
    return driver


@cache
def _on_device(spec: KernelSpec, device: int) -> tuple[CompiledKernel, ctypes.c_void_p]:
    kernel = compile_for_gpu(spec, "".join(map(str, torch.cuda.get_device_capability(device))))
    try:
        return kernel, cuda_driver().load(kernel)
    except CudaError as error:
        raise _refusal(error.text, error.status, str(spec)) from None


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


def _check_sizes(query: Tensor, kept: Tensor, tile: int, prefix: int) -> None:
    # As the library's launcher does, which a kernel that is started directly does without.
    images, heads, tokens, width = query.shape
    tiles, keys = kept.shape[2:]
    counted = min(images, heads, tokens, width, keys, tile) >= 1 and keys <= tokens and 0 <= prefix <= tokens
    if not counted or tiles != -(-(tokens - prefix) // tile):
        raise _refusal("", _INVALID_VALUE, _described(query, kept, tile, prefix))


def _described(query: Tensor, kept: Tensor, tile: int, prefix: int) -> str:
    return f"query {tuple(query.shape)}, kept {tuple(kept.shape)}, {tile=}, {prefix=}"


def _refusal(text: str, status: int, operands: str) -> VitslimError:
    if status == _INVALID_VALUE:
        return ConfigError(f"the CUDA kernel does not take {operands}: wanted ceil((n - prefix) / tile) key sets")
    if status in _UNFIT_MACHINE:
        return MissingDependencyError(
            f"the CUDA kernel cannot run here ({text}); build it for this GPU with `vitslim plugin build --arch ...`, "
            "or update the driver"
        )
    return CheckFailedError(f"the CUDA kernel did not start: {text} ({operands})")
