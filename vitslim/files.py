"""Writing files so that the old one survives whatever happens."""

import json
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitslim.errors import CheckpointError


@contextmanager
def atomic_path(path: str | Path) -> Generator[Path]:
    """Yield a scratch path beside ``path``; on success it replaces ``path``, on any failure it is removed.

    The scratch file lies in the same folder, because only a rename inside one file system is atomic. Its content
    reaches the disk before the rename, so that a power cut leaves either the old or the new file, whole.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(handle)
    scratch = Path(name)
    try:
        yield scratch
        _flush(scratch)
        scratch.chmod(0o666 & ~_umask())
        os.replace(scratch, target)
    finally:
        scratch.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_path(path) as scratch:
        scratch.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, document: Any) -> None:
    """Write ``document`` to ``path`` atomically as indented JSON; NaN and infinity are refused."""
    write_text(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file of ours.

    Raises:
        CheckpointError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); it may be truncated, write it again") from None


def _flush(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
