"""Writing files so that the old one survives whatever happens."""

import json
import os
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitslim.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def atomic_path(path: str | Path) -> Generator[Path]:
    """Yield a scratch path beside ``path``; on success it replaces ``path``, on any failure it is removed.

    The scratch file lies in the same folder, because only a rename inside one file system is atomic. Its content
    reaches the disk before the rename, so that a power cut leaves either the old or the new file, whole.

    Raises:
        CheckpointError: the file cannot be written: no space, no permission, a folder of that name.
    """
    target = Path(path)
    try:
        scratch = _scratch_beside(target)
        try:
            yield scratch
            _flush(scratch)
            scratch.chmod(0o666 & ~_umask())
            os.replace(scratch, target)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(target, error.strerror or str(error)) from error


@contextmanager
def atomic_folder(folder: str | Path) -> Generator[Path]:
    """Yield an empty scratch folder beside ``folder``; on success it replaces ``folder``, on any failure it is removed.

    Raises:
        CheckpointError: the folder cannot be written: no space, no permission, a file of that name.
    """
    target = Path(folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part"))
        try:
            yield scratch
            for path in scratch.rglob("*"):
                if path.is_file():
                    _flush(path)
            scratch.chmod(0o777 & ~_umask())
            _replace_folder(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise _unwritable(target, error.strerror or str(error)) from error


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_path(path) as scratch:
        scratch.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, document: Any) -> None:
    """Write ``document`` to ``path`` atomically as indented JSON.

    Raises:
        CheckpointError: it holds NaN or infinity, which JSON does not know, or the file cannot be written.
    """
    try:
        text = json.dumps(document, indent=2, allow_nan=False)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be written: a figure is NaN or infinite ({error})") from None
    write_text(path, text + "\n")


def write_tensors(path: str | Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> None:
    """Write named tensors to ``path`` atomically, as safetensors.

    Raises:
        CheckpointError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as scratch:
        try:
            save_file(dict(tensors), scratch, dict(metadata))
        except SafetensorError as error:  # how the library reports a full disk
            raise _unwritable(Path(path), str(error)) from error


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


def _scratch_beside(target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(handle)
    return Path(name)


def _replace_folder(scratch: Path, target: Path) -> None:
    # A rename cannot replace a folder that holds files: the old one steps aside, and back if the new one fails.
    if not target.exists():
        scratch.rename(target)
        return
    aside = Path(f"{scratch}.old")
    target.rename(aside)
    try:
        scratch.rename(target)
    except OSError:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _unwritable(target: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{target} cannot be written ({reason}); what lay there before is unchanged")


def _flush(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
