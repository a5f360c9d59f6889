"""The kernel compiled by NVRTC, the compiler that comes with torch: no tool chain and no GPU are needed."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from vitslim.errors import ConfigError, MissingDependencyError
from vitslim.plugin.libraries import SOURCES
from vitslim.plugin.toolchain import useful_line

ENTRY = "vitslim_sparse_attention_kernel"
_TYPES = {"fp32": "float", "fp16": "vitslim::Half", "bf16": "vitslim::Brain"}
_PADDED_WIDTHS = (32, 64, 128)


@dataclass(frozen=True)
class KernelSpec:
    """What is fixed when the kernel is compiled; batch, heads, tokens and key count stay open.

    Args:
        precision: of queries, keys, values and result; the arithmetic is fp32.
        width: of one head, 1 to 128.
        tile: patch queries that share a key set.
        prefix: tokens at the front that are no patches.
        scale: factor of the scores.
    """

    precision: Literal["fp32", "fp16", "bf16"]
    width: int
    tile: int
    prefix: int
    scale: float


@dataclass(frozen=True)
class CompiledKernel:
    """Machine code or PTX, and how to start it.

    The arguments are query, key, value, kept (pointers), tokens, tiles, keys (int), mixed (pointer).

    Args:
        entry: name of the kernel.
        image: cubin for one architecture, or PTX for that and all later ones.
        threads: of a block.
        queries_per_block: patch queries of one tile that a block serves.
    """

    entry: str
    image: bytes
    threads: int
    queries_per_block: int

    def blocks_per_head(self, tiles: int, tile: int, prefix: int) -> int:
        """Blocks for one head of one image: one for each prefix query, then the parts of each tile."""
        return prefix + tiles * -(-tile // self.queries_per_block)


def compile_kernel(spec: KernelSpec, architecture: str, *, as_ptx: bool = False) -> CompiledKernel:
    """Compile the kernel for one set of attributes.

    Args:
        architecture: compute capability without the dot, such as ``90``.
        as_ptx: PTX, which the driver of any later GPU finishes, in place of a cubin.

    Raises:
        ConfigError: a number out of range, or an architecture that NVRTC does not know.
        MissingDependencyError: no NVRTC or no CUDA headers, or the compilation failed.
    """
    if spec.precision not in _TYPES or not 1 <= spec.width <= _PADDED_WIDTHS[-1] or spec.tile < 1 or spec.prefix < 0:
        raise ConfigError(
            f"{spec}: wanted fp32, fp16 or bf16, width 1 to {_PADDED_WIDTHS[-1]}, tile from 1, prefix from 0"
        )
    compiler = _required_nvrtc()
    known = compiler.architectures()
    if architecture not in known:
        raise ConfigError(f"architecture {architecture!r}: this NVRTC compiles for {', '.join(known)}")
    folders = (SOURCES, cuda_headers())
    options = ["--std=c++17", f"--gpu-architecture=sm_{architecture}", *(f"-I{folder}" for folder in folders)]
    options += [f"-D{name}={value}" for name, value in kernel_macros(spec).items()]
    ptx, cubin = compiler.compile(SOURCES / "sparse_attention_aot.cu", options)
    text = ptx.decode()
    return CompiledKernel(
        entry=ENTRY,
        image=ptx if as_ptx else cubin,
        threads=_number_in(text, r"\.maxntid (\d+)"),
        queries_per_block=_number_in(text, r"vitslim_queries_per_block = (\d+)"),
    )


def kernel_macros(spec: KernelSpec) -> dict[str, str | int]:
    """What ``sparse_attention_aot.cu`` wants defined."""
    return {
        "VITSLIM_TYPE": _TYPES[spec.precision],
        "VITSLIM_PADDED_WIDTH": min(width for width in _PADDED_WIDTHS if width >= spec.width),
        "VITSLIM_WIDTH": spec.width,
        "VITSLIM_TILE": spec.tile,
        "VITSLIM_PREFIX": spec.prefix,
        # All digits, as a C++17 literal.
        "VITSLIM_SCALE": f"{spec.scale.hex()}f",
    }


def compile_for_gpu(spec: KernelSpec, capability: str) -> CompiledKernel:
    """Compile the kernel for the GPU that should run it.

    A GPU that NVRTC does not know yet gets PTX of the latest one before it, which the driver finishes.

    Args:
        capability: of the GPU, without the dot, such as ``90``.

    Raises:
        MissingDependencyError: no NVRTC or no CUDA headers, or the GPU is older than what NVRTC compiles for.
        ConfigError: see ``compile_kernel``.
    """
    known = _required_nvrtc().architectures()
    if capability in known:
        return compile_kernel(spec, capability)
    earlier = [name for name in known if int(name) < int(capability)]
    if not earlier:
        raise MissingDependencyError(
            f"NVRTC compiles for {', '.join(known)}, the GPU is {capability}; use an older torch"
        )
    return compile_kernel(spec, earlier[-1], as_ptx=True)


def nvrtc_version() -> str | None:
    """As in ``13.2``; ``None`` where there is no NVRTC."""
    compiler = _nvrtc()
    return None if compiler is None else compiler.version()


def cuda_headers() -> Path:
    """The folder of CUDA's headers, beside torch or of a toolkit.

    Raises:
        MissingDependencyError: there is none.
    """
    folders = [folder / "include" for folder in (*_cuda_folders(), *_toolkits())]
    with_types = [folder for folder in folders if (folder / "cuda_fp16.h").is_file()]
    if not with_types:
        raise MissingDependencyError(
            "cuda_fp16.h was not found; it comes with torch's CUDA builds (package nvidia-cuda-runtime) and with the "
            "CUDA toolkit: set CUDA_HOME"
        )
    return with_types[0]


def require_nvrtc() -> None:
    """Refuse where kernels cannot be compiled at run time.

    Raises:
        MissingDependencyError: no NVRTC, or no CUDA headers.
    """
    _required_nvrtc()
    cuda_headers()


class _Nvrtc:
    """The few calls of NVRTC's C interface that a compilation takes."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def version(self) -> str:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    def architectures(self) -> tuple[str, ...]:
        """Compute capabilities without the dot, in rising order."""
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", numbers)
        return tuple(str(number) for number in sorted(set(numbers)))

    def compile(self, source: Path, options: Sequence[str]) -> tuple[bytes, bytes]:
        """PTX and cubin of one file."""
        program = ctypes.c_void_p()
        self._call(
            "nvrtcCreateProgram", ctypes.byref(program), source.read_bytes(), source.name.encode(), 0, None, None
        )
        try:
            given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            if self._library.nvrtcCompileProgram(program, len(options), given) != 0:
                log = self._output("nvrtcGetProgramLog", program).decode(errors="replace")
                raise MissingDependencyError(
                    f"NVRTC {self.version()} failed on {source.name}: {useful_line(log)}; check that the CUDA packages "
                    "beside torch fit each other"
                )
            return self._output("nvrtcGetPTX", program).rstrip(b"\0"), self._output("nvrtcGetCUBIN", program)
        finally:
            self._library.nvrtcDestroyProgram(ctypes.byref(program))

    def _output(self, name: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"{name}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self._call(name, program, buffer)
        return buffer.raw

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status != 0:
            reason = self._library.nvrtcGetErrorString(status).decode()
            raise MissingDependencyError(f"{name}: {reason}; check the NVRTC that came with torch")


@cache
def _nvrtc() -> _Nvrtc | None:
    beside_torch = [path for folder in _cuda_folders() for path in sorted((folder / "lib").glob("libnvrtc.so.*"))]
    in_toolkit = [path for folder in _toolkits() for path in sorted((folder / "lib64").glob("libnvrtc.so"))]
    for name in (*map(str, beside_torch), *map(str, in_toolkit), "libnvrtc.so.13", "libnvrtc.so.12"):
        try:
            return _Nvrtc(ctypes.CDLL(name))
        except OSError:
            continue
    return None


def _required_nvrtc() -> _Nvrtc:
    compiler = _nvrtc()
    if compiler is None:
        raise MissingDependencyError(
            "NVRTC was not found; it comes with torch's CUDA builds: `pip install torch`. Where nvcc is, "
            "`vitslim plugin build` compiles the kernel without it"
        )
    return compiler


def _cuda_folders() -> list[Path]:
    # The CUDA packages beside torch share the namespace `nvidia`.
    spec = find_spec("nvidia")
    roots = [] if spec is None else list(spec.submodule_search_locations or ())
    return [folder for root in roots for folder in sorted(Path(root).iterdir(), reverse=True) if folder.is_dir()]


def _toolkits() -> list[Path]:
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    return [Path(home) for home in (*homes, "/usr/local/cuda")]


def _number_in(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise MissingDependencyError(f"NVRTC's output lacks {pattern!r}; this version of NVRTC is not supported")
    return int(found[1])
