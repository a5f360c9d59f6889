"""Which code was measured: figures of other code are not figures of this one, though the version says the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_ROOMS = ("bench", "data", "export", "kernels", "methods", "models", "plugin", "runtime", "train", "trunk")
_FOLDERS = (*_ROOMS, "pipeline/suite")
_KINDS = (".py", ".json", ".cu", ".cuh", ".cpp", ".h")  # the JSON: what the kernels were tuned to


def code_digest(package: Path = _PACKAGE) -> str:
    """A number of all files of vitslim that decide how fast a model runs or how it is trained."""
    found = hashlib.sha256()
    for folder in _FOLDERS:
        for path in sorted((package / folder).rglob("*")):
            if path.suffix in _KINDS:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                found.update(f"{path.relative_to(package).as_posix()} {content}\n".encode())
    return found.hexdigest()[:16]
