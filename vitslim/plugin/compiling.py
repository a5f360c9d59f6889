"""Building the libraries: kernels by Triton, the rest by the C++ compiler. Neither a GPU nor nvcc is needed."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from vitslim.errors import ConfigError
from vitslim.files import atomic_path, write_text
from vitslim.kernels.sparse_attention import WIDEST_HEAD, WIDTH_MULTIPLE
from vitslim.plugin.cubins import (
    ARCHITECTURES,
    PORTABLE,
    PRECISIONS,
    WIDTHS,
    TileKernel,
    checked_architectures,
    compile_tiles,
    library_specs,
    require_triton,
    triton_version,
)
from vitslim.plugin.libraries import KERNELS, PLUGINS, SOURCES, PluginBuild, default_folder, record_of, sources_sha256
from vitslim.plugin.toolchain import compile_or_explain, compiler_version, cuda_headers, required_compiler

_log = logging.getLogger(__name__)
_COMPILE = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")
# Nothing may stay undefined, so that a TensorRT symbol cannot slip in.
_LINK = ("-shared", "-Wl,--exclude-libs=ALL,-Bsymbolic,--no-undefined", "-ldl")
_OLDEST_TENSORRT = (10, 12)


def build(
    out_dir: str | Path | None = None,
    architectures: Sequence[str] = ARCHITECTURES,
    tensorrt_include: str | Path | None = None,
    widths: Sequence[int] = WIDTHS,
) -> PluginBuild:
    """Compile the launcher's library and, given TensorRT's headers, the plugin's.

    Each library holds machine code for every architecture, and PTX of the oldest for all others. Libraries that lay
    there before stay whole until the new ones replace them, and if the build fails.

    Args:
        out_dir: folder for the libraries and their records; not given means where they are looked for.
        architectures: compute capabilities, ``90`` or ``9.0``.
        tensorrt_include: folder of NvInferRuntime.h, of TensorRT 10.12 or later.
        widths: of heads, multiples of 8 up to 128.

    Raises:
        MissingDependencyError: no Triton, no C++ compiler, no CUDA headers.
        ConfigError: an architecture before 8.0; a width that the kernel does not take; a folder without TensorRT's
            headers, or of an old one.
        CheckFailedError: a compiler failed.
        CheckpointError: ``out_dir`` cannot be written.
    """
    headers = None if tensorrt_include is None else Path(tensorrt_include)
    tensorrt = None if headers is None else tensorrt_version(headers)
    names = checked_architectures(architectures)
    if not widths or not all(0 < width <= WIDEST_HEAD and width % WIDTH_MULTIPLE == 0 for width in widths):
        given = ", ".join(map(str, widths)) or "none"
        raise ConfigError(f"head widths {given}: wanted multiples of {WIDTH_MULTIPLE} up to {WIDEST_HEAD}")
    require_triton()
    compiler, cuda = required_compiler(), cuda_headers()
    ordered = sorted(set(widths))
    _log.info(
        "compiling for %s and heads of %s; it takes some seconds for each architecture and width",
        ", ".join(names),
        ", ".join(map(str, ordered)),
    )
    folder = default_folder() if out_dir is None else Path(out_dir)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vitslim-plugin-") as scratch:
        kernels = compile_tiles(library_specs(names, ordered))
        kernels += compile_tiles(library_specs([str(PORTABLE)], ordered), ptx=True)
        embed(kernels, Path(scratch))
        made = _compile(compiler, cuda, headers, Path(scratch))
        result = PluginBuild(
            kernels=folder / KERNELS,
            plugins=None if headers is None else folder / PLUGINS,
            architectures=names,
            widths=tuple(ordered),
            triton=triton_version() or "unknown",
            compiler=compiler_version(compiler),
            tensorrt=tensorrt,
            inside=[kernel.summary() for kernel in kernels],
            sources_sha256=sources_sha256(),
            seconds=round(time.monotonic() - started, 1),
        )
        for library in made:
            target = folder / library.name
            with atomic_path(target) as place:
                shutil.copyfile(library, place)
            write_text(record_of(target), result.model_dump_json(indent=2) + "\n")
    return result


def embed(kernels: Sequence[TileKernel], folder: Path) -> None:
    """Write ``kernels.inc``, which ``sparse_attention.cpp`` includes, and ``kernels.S``, which holds the code."""
    code, rows = bytearray(), list[str]()
    for kernel in kernels:
        # The zero ends PTX; the driver wants cubins at multiples of 16 bytes.
        begin = len(code)
        code += kernel.code + b"\0"
        code += bytes(-len(code) % 16)
        spec = kernel.spec
        dtype = PRECISIONS.index(spec.precision)
        numbers = (spec.capability, dtype, spec.width, kernel.queries, kernel.threads, kernel.shared_bytes)
        rows.append(f'    {{{", ".join(map(str, numbers))}, "{kernel.entry}", {str(kernel.is_ptx).lower()}, {begin}}},')
    widths = ", ".join(map(str, sorted({kernel.spec.width for kernel in kernels})))
    texts = {"WIDTHS": widths, "VERSION": sha256(code).hexdigest()[:16]}
    table = ["constexpr Kernel KERNELS[] = {", *rows, "};"]
    table += [f'constexpr char {name}[] = "{text}";' for name, text in texts.items()]
    (folder / "kernels.inc").write_text("\n".join(table) + "\n", "utf-8")
    (folder / "kernels.bin").write_bytes(code)
    lines = (
        *(".section .rodata", ".global vitslim_code", ".hidden vitslim_code", ".balign 16"),
        *("vitslim_code:", f'.incbin "{folder / "kernels.bin"}"', '.section .note.GNU-stack,"",%progbits'),
    )
    (folder / "kernels.S").write_text("\n".join(lines) + "\n", "utf-8")


def tensorrt_version(headers: Path) -> str:
    """Version of the TensorRT to which headers belong, as ``11.1.0``.

    Raises:
        ConfigError: no such headers, or older than the plugin interface wants.
    """
    version_file = headers / "NvInferVersion.h"
    if not version_file.is_file() or not (headers / "NvInferRuntime.h").is_file():
        raise ConfigError(
            f"{headers} has no TensorRT headers (NvInferRuntime.h, NvInferVersion.h); they are in the folder include/ "
            "of a TensorRT download and of github.com/NVIDIA/TensorRT"
        )
    defined = dict(re.findall(r"^#define\s+(\w+)\s+(\w+)", version_file.read_text(errors="replace"), re.MULTILINE))
    parts = [_number(defined, f"NV_TENSORRT_{name}") for name in ("MAJOR", "MINOR", "PATCH")]
    found = ".".join(map(str, parts))
    if tuple(parts[:2]) < _OLDEST_TENSORRT:
        raise ConfigError(f"{headers} belongs to TensorRT {found}; the plugin wants 10.12 or later")
    return found


def _number(defined: dict[str, str], name: str) -> int:
    # From 11 on the number stands under another name, to which this one refers.
    value = defined.get(name, "")
    value = defined.get(value, value)
    if not (value.isdecimal() and len(value) < 10):
        raise ConfigError(f"NvInferVersion.h does not define {name}; name the folder include/ of a whole TensorRT")
    return int(value)


def _compile(compiler: Path, cuda: Path, headers: Path | None, scratch: Path) -> list[Path]:
    code, launcher = scratch / "kernels.o", scratch / "launcher.o"
    compile_or_explain([str(compiler), "-c", str(scratch / "kernels.S"), "-o", str(code)], "kernels.S")
    # A stand-in for the runtime's header lies among the sources.
    common = [str(compiler), *_COMPILE, f"-I{SOURCES}", f"-isystem{cuda}"]
    source = SOURCES / "sparse_attention.cpp"
    compile_or_explain([*common, f"-I{scratch}", "-c", str(source), "-o", str(launcher)], source.name)
    libraries = [_link(compiler, [launcher, code], scratch / KERNELS)]
    if headers is not None:
        plugin, source = scratch / "plugin.o", SOURCES / "sparse_attention_plugin.cpp"
        compile_or_explain([*common, f"-isystem{headers}", "-c", str(source), "-o", str(plugin)], source.name)
        libraries.append(_link(compiler, [launcher, plugin, code], scratch / PLUGINS))
    return libraries


def _link(compiler: Path, objects: Sequence[Path], library: Path) -> Path:
    compile_or_explain([str(compiler), *map(str, objects), *_LINK, "-o", str(library)], library.name)
    return library
