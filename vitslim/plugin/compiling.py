"""Building the libraries with nvcc; no GPU is needed."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from vitslim.errors import ConfigError
from vitslim.files import atomic_path, write_text
from vitslim.plugin.libraries import KERNELS, PLUGINS, SOURCES, PluginBuild, default_folder, record_of, sources_sha256
from vitslim.plugin.toolchain import checked_architectures, compile_or_explain, nvcc_version, required_nvcc

# A100, RTX 30, RTX 40 and L4, H100, B200, RTX 50
ARCHITECTURES = ("80", "86", "89", "90", "100", "120")

_HOST_FLAGS = ("-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra")
_COMPILE = ("-std=c++17", "-O3", *(f"-Xcompiler={flag}" for flag in _HOST_FLAGS))
# Static, hidden CUDA runtime: no clash with the one that torch or TensorRT brought. Nothing may stay undefined, so that
# a TensorRT symbol cannot slip in.
_LINK = ("-shared", "-cudart=static", "-Xlinker=--exclude-libs=ALL,-Bsymbolic,--no-undefined")
_OLDEST_TENSORRT = (10, 12)


def build(
    out_dir: str | Path | None = None,
    architectures: Sequence[str] = ARCHITECTURES,
    tensorrt_include: str | Path | None = None,
) -> PluginBuild:
    """Compile the launcher's library and, given TensorRT's headers, the plugin's.

    Each library holds machine code for every architecture, and PTX of the newest for GPUs to come. Libraries that lay
    there before stay whole until the new ones replace them, and if the build fails.

    Args:
        out_dir: folder for the libraries and their records; not given means where they are looked for.
        architectures: compute capabilities, ``90`` or ``9.0``.
        tensorrt_include: folder of NvInferRuntime.h, of TensorRT 10.12 or later.

    Raises:
        MissingDependencyError: no nvcc, or it failed.
        ConfigError: an architecture that nvcc does not know; a folder without TensorRT's headers, or of an old one.
        CheckpointError: ``out_dir`` cannot be written.
    """
    headers = None if tensorrt_include is None else Path(tensorrt_include)
    tensorrt = None if headers is None else tensorrt_version(headers)
    nvcc = required_nvcc()
    names = checked_architectures(nvcc, architectures)
    folder = default_folder() if out_dir is None else Path(out_dir)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vitslim-plugin-") as scratch:
        made = _compile(nvcc, names, headers, Path(scratch))
        result = PluginBuild(
            kernels=folder / KERNELS,
            plugins=None if headers is None else folder / PLUGINS,
            architectures=names,
            nvcc=nvcc_version(nvcc),
            tensorrt=tensorrt,
            sources_sha256=sources_sha256(),
            seconds=round(time.monotonic() - started, 1),
        )
        for library in made:
            target = folder / library.name
            with atomic_path(target) as place:
                shutil.copyfile(library, place)
            write_text(record_of(target), result.model_dump_json(indent=2) + "\n")
    return result


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
    version = ".".join(map(str, parts))
    if tuple(parts[:2]) < _OLDEST_TENSORRT:
        raise ConfigError(f"{headers} belongs to TensorRT {version}; the plugin wants 10.12 or later")
    return version


def _number(defined: dict[str, str], name: str) -> int:
    # From 11 on the number stands under another name, to which this one refers.
    value = defined.get(name, "")
    value = defined.get(value, value)
    if not (value.isdecimal() and len(value) < 10):
        raise ConfigError(f"NvInferVersion.h does not define {name}; name the folder include/ of a whole TensorRT")
    return int(value)


def _compile(nvcc: Path, architectures: tuple[str, ...], headers: Path | None, scratch: Path) -> list[Path]:
    targets = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    targets.append(f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")
    kernels_object = scratch / "kernels.o"
    source = SOURCES / "sparse_attention.cu"
    warnings = "-Werror=all-warnings"
    compile_or_explain(
        [str(nvcc), *_COMPILE, warnings, *targets, "-c", str(source), "-o", str(kernels_object)], source.name
    )
    libraries = [_link(nvcc, [kernels_object], scratch / KERNELS)]
    if headers is not None:
        plugin_object = scratch / "plugin.o"
        source = SOURCES / "sparse_attention_plugin.cpp"
        compile_or_explain(
            [str(nvcc), *_COMPILE, f"-isystem={headers}", "-c", str(source), "-o", str(plugin_object)], source.name
        )
        libraries.append(_link(nvcc, [kernels_object, plugin_object], scratch / PLUGINS))
    return libraries


def _link(nvcc: Path, objects: Sequence[Path], library: Path) -> Path:
    compile_or_explain([str(nvcc), *_LINK, *map(str, objects), "-o", str(library)], library.name)
    return library
