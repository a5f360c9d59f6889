"""Which code was measured: figures of other code are not figures of this one, though the version says the same."""

from __future__ import annotations

import hashlib
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_TRAINED = ("data", "kernels", "methods", "models", "plans", "train", "trunk")
# What decides how fast a model runs, and what it learns.
MEASURING = (*_TRAINED, "bench", "pipeline/baselines.py", "pipeline/suite", "plugin", "runtime", "targets")
TRAINING = (*_TRAINED, "analysis", "pipeline/baselines.py", "pipeline/suite/training.py")
_KINDS = (".py", ".cu", ".cuh", ".cpp", ".h")


def code_digest(package: Path = _PACKAGE, parts: tuple[str, ...] = MEASURING, kinds: tuple[str, ...] = _KINDS) -> str:
    """A number of all files of vitslim of some kinds in some folders."""
    found = hashlib.sha256()
    for part in sorted(parts):
        root = package / part
        for path in [root] if root.is_file() else sorted(root.rglob("*")):
            if path.suffix in kinds:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                found.update(f"{path.relative_to(package).as_posix()} {content}\n".encode())
    return found.hexdigest()[:16]
