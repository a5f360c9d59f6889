"""The built libraries: where they lie, what was written down beside them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from vitslim.errors import ConfigError
from vitslim.files import cache_root
from vitslim.shapes import Result

SOURCES = Path(__file__).parent / "sources"
KERNEL_SOURCE = Path(__file__).parents[1] / "kernels" / "triton" / "tile_attention.py"
KERNELS = "libvitslim_kernels.so"
PLUGINS = "libvitslim_plugins.so"
VARIABLES = {KERNELS: "VITSLIM_KERNELS_LIBRARY", PLUGINS: "VITSLIM_PLUGIN_LIBRARY"}


class PluginBuild(Result):
    """What a build made, and from what; it lies as JSON beside each of the libraries.

    Args:
        kernels: the launcher's library.
        plugins: the TensorRT plugin's library; ``None`` without TensorRT's headers.
        architectures: compute capabilities with machine code inside, without the dot.
        widths: of the heads that the kernels inside take.
        triton: version of what compiled the kernels.
        compiler: what compiled the rest.
        tensorrt: version of the headers.
        inside: of each kernel for whom it is and what the assembler says of it.
        sources_sha256: over all source files, the kernel's own among them.
        seconds: wall time.
    """

    kernels: Path
    plugins: Path | None
    architectures: tuple[str, ...]
    widths: tuple[int, ...]
    triton: str
    compiler: str
    tensorrt: str | None
    inside: list[dict[str, Any]]
    sources_sha256: str
    seconds: float


def default_folder() -> Path:
    """Where builds go and are looked for: ``$VITSLIM_CACHE/plugin``, else ``~/.cache/vitslim/plugin``."""
    return cache_root() / "plugin"


def kernels_library() -> Path | None:
    """The launcher's library: ``$VITSLIM_KERNELS_LIBRARY``, else the last build, else ``None``.

    Raises:
        ConfigError: the variable names no file.
    """
    return find_library(KERNELS)


def plugin_library() -> Path | None:
    """The TensorRT plugin's library: ``$VITSLIM_PLUGIN_LIBRARY``, else the last build, else ``None``.

    Raises:
        ConfigError: the variable names no file.
    """
    return find_library(PLUGINS)


def sources_sha256() -> str:
    """One digest of all source files, their names and contents."""
    digest = hashlib.sha256()
    for path in (*sorted(SOURCES.iterdir()), KERNEL_SOURCE):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def record_of(library: Path) -> Path:
    """The JSON file beside a library."""
    return library.with_suffix(".json")


def find_library(name: str) -> Path | None:
    """A library by its file name, see ``kernels_library``."""
    variable = VARIABLES[name]
    if given := os.environ.get(variable):
        if not Path(given).is_file():
            raise ConfigError(f"{variable}={given}: no such file; name a built {name}, or unset it")
        return Path(given)
    path = default_folder() / name
    return path if path.is_file() else None
