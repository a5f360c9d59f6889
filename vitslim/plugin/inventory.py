"""What of the plugin there is on this machine: compilers, sources, libraries and the kernels inside them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitslim.errors import VitslimError
from vitslim.files import read_json
from vitslim.plugin.cubins import triton_version
from vitslim.plugin.libraries import KERNELS, PLUGINS, SOURCES, find_library, record_of, sources_sha256
from vitslim.plugin.toolchain import compiler_version, find_compiler


def info() -> dict[str, Any]:
    """What is there, as one document: compilers, sources, libraries, their builds, whether they are current."""
    compiler = find_compiler()
    current = sources_sha256()
    return {
        "sources": {"folder": str(SOURCES), "sha256": current},
        "compiler": None if compiler is None else {"path": str(compiler), "version": compiler_version(compiler)},
        "triton": triton_version(),
        "libraries": {name: _described(find_library(name), current) for name in (KERNELS, PLUGINS)},
    }


def _described(library: Path | None, current: str) -> dict[str, Any] | None:
    if library is None:
        return None
    try:
        record = read_json(record_of(library))
    except VitslimError:
        # Built elsewhere, or by hand: it may well work.
        return {"path": str(library), "build": None, "current": None}
    return {"path": str(library), "build": record, "current": record.get("sources_sha256") == current}
