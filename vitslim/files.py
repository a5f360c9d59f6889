"""Writing files so that the old one survives whatever happens."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from vitslim.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

# A scratch folder of ours: `.model.onnx.vitslim-a1b2c3d4.part` for model.onnx.
_SCRATCH = re.compile(r"\..+\.vitslim-[a-z0-9_]{8}\.part")


def cache_root() -> Path:
    """The folder of everything that is kept between runs: $VITSLIM_CACHE, else ~/.cache/vitslim."""
    return Path(os.environ.get("VITSLIM_CACHE") or Path.home() / ".cache" / "vitslim")


def digest_of(inputs: Any, length: int = 16) -> str:
    """A short name for all that something depends on: plain data, and settings, which count by their values."""
    words = json.dumps(inputs, sort_keys=True, default=_plain)
    return hashlib.sha256(words.encode()).hexdigest()[:length]


def _plain(one: Any) -> Any:
    return one.model_dump(mode="json") if hasattr(one, "model_dump") else str(one)


@contextmanager
def atomic_path(path: str | Path) -> Generator[Path]:
    """Yield a scratch path of the same name; on success it replaces ``path``, on any failure it is removed.

    It lies beside ``path``, because only a rename inside one file system is atomic. Its content reaches the disk before
    the rename, so that a power cut leaves either the old or the new file, whole.

    Raises:
        CheckpointError: the file cannot be written: no space, no permission, a folder or device of that name.
    """
    with atomic_paths(path) as (scratch,):
        yield scratch


@contextmanager
def atomic_paths(*paths: str | Path) -> Generator[tuple[Path, ...]]:
    """``atomic_path`` for several files of one folder: all are replaced once all are whole, or none.

    They take their places in the order given. Only a kill between two of these renames can part them.

    Raises:
        CheckpointError: as ``atomic_path``.
    """
    targets = [Path(path) for path in paths]
    with reported_as(targets[0]):
        for target in targets:
            _require_no_device(target)
        with scratch_beside(targets[0]) as folder:
            scratches = tuple(folder / target.name for target in targets)
            yield scratches
            replace_together(dict(zip(scratches, targets, strict=True)))


@contextmanager
def atomic_folder(folder: str | Path) -> Generator[Path]:
    """Yield an empty scratch folder of the same name; on success it replaces ``folder``, on any failure it is removed.

    Where a kill parted the two renames of an exchange, the old folder is put back when this is called next.

    Raises:
        CheckpointError: the folder cannot be written: no space, no permission, a file of that name.
    """
    target = Path(folder)
    aside = target.with_name(f".{target.name}.vitslim-old")
    with reported_as(target), scratch_beside(target) as place:
        if aside.exists() and not target.exists():
            aside.rename(target)
        scratch = place / target.name
        scratch.mkdir()
        yield scratch
        for path in scratch.rglob("*"):
            if path.is_file():
                _flush(path)
        _replace_folder(scratch, target, aside)


@contextmanager
def scratch_beside(target: Path) -> Generator[Path]:
    """Yield an empty folder beside ``target``, which is removed at the end; what killed processes left there too.

    Who works in one holds a lock on it, so that nobody takes it for left behind.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    scratch, handle = _locked_scratch(target)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(handle)


def replace_together(written: Mapping[Path, Path]) -> None:
    """Put scratch files into the places of their targets, in this order; after a failure the old ones are back."""
    for scratch in written:
        _flush(scratch)
    begun: list[tuple[Path, Path, Path | None]] = []
    try:
        for scratch, target in written.items():
            kept = scratch.with_name(f"{scratch.name}.old") if len(written) > 1 and target.is_file() else None
            if kept is not None:
                link_or_copy(target, kept)
            begun.append((scratch, target, kept))
            os.replace(scratch, target)
    except BaseException:
        for scratch, target, kept in reversed(begun):
            if scratch.exists():  # its rename is what failed
                continue
            if kept is None:
                target.unlink()
            else:
                os.replace(kept, target)
        raise


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, or a second copy where the file system knows no hard links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def is_vacant(folder: Path) -> bool:
    """Whether a folder holds nothing but what writes that were cut off left behind."""
    return all(is_scratch(path) for path in folder.iterdir())


def is_scratch(path: Path) -> bool:
    """Whether this is what a killed process of ours may leave: of one write, or of a run over another one."""
    is_copy = path.name == f".{Path(os.path.abspath(path)).parent.name}.next"
    return is_copy or _SCRATCH.fullmatch(path.name) is not None


def check_output_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that would be written over.

    Raises:
        ConfigError: it is a file, or it is not empty and ``overwrite`` was not given.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output {folder} is a file; name a folder")
    if folder.is_dir() and not is_vacant(folder) and not overwrite:
        raise ConfigError(f"output folder {folder} is not empty; pass --overwrite (overwrite=True) or another folder")


def require_writable(path: str | Path) -> None:
    """Refuse now, before any work, what writing the file would be refused for later.

    Raises:
        CheckpointError: a folder or device of that name, or no permission. A full disk shows only later.
    """
    target = Path(path)
    with reported_as(target):
        _require_no_device(target)
        if target.is_dir():
            raise IsADirectoryError("a folder has this name")
        above = next(parent for parent in target.absolute().parents if parent.exists())
        if not above.is_dir():
            raise NotADirectoryError(f"{above} is a file")
        if not os.access(above, os.W_OK | os.X_OK):
            raise PermissionError(f"no permission to write in {above}")


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_path(path) as scratch:
        scratch.write_bytes(data)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically, in UTF-8; half a surrogate pair, which it cannot hold, is spelled out."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: str | Path, document: Any) -> None:
    """Write ``document`` to ``path`` atomically as indented JSON.

    Raises:
        CheckpointError: it holds NaN or infinity, which JSON does not know, or the file cannot be written.
    """
    write_text(path, json_text(document, path))


def json_text(document: Any, path: str | Path) -> str:
    """``document`` as the text of the JSON file ``path``.

    Raises:
        CheckpointError: it holds NaN or infinity.
    """
    try:
        return json.dumps(document, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be written: a figure is NaN or infinite ({error})") from None


def write_tensors(path: str | Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> None:
    """Write named tensors to ``path`` atomically, as safetensors.

    Raises:
        CheckpointError: the file cannot be written.
    """
    with atomic_path(path) as scratch:
        save_tensors(scratch, tensors, metadata)


def save_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str]) -> None:
    """Fill a scratch file with safetensors; the same content gives the same bytes.

    Raises:
        OSError: the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(tensors), path, dict(metadata))
    except SafetensorError as error:  # how the library reports a full disk
        raise OSError(str(error)) from error
    _sort_metadata_(path)


def read_json(path: str | Path) -> Any:
    """Read a JSON file of ours.

    Raises:
        CheckpointError: the file is missing or is not JSON.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist")
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; wanted JSON that vitslim wrote")
    try:
        return parse_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); it may be truncated, write it again") from None


def parse_json(text: str) -> Any:
    """JSON as the standard has it: without NaN, not deeper than Python can walk, with integers of up to 64 bits.

    Raises:
        ValueError: it is something else.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_int=_bounded)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


@contextmanager
def reported_as(target: Path) -> Generator[None]:
    """Turn what the system says of a write into an error that names the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{target} cannot be written ({reason}); what lay there before is unchanged") from error


def _bounded(digits: str) -> int:
    if len(digits) > 20 or abs(number := int(digits)) >= 2**63:
        raise ValueError(f"a number of {len(digits)} digits, {digits[:20]}..., is no count or size")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _require_no_device(target: Path) -> None:
    is_special = target.exists() and not target.is_file() and not target.is_dir()
    # /dev/stdout may be a link to a plain file; a rename would replace the link.
    if is_special or target.absolute().parent == Path("/dev"):
        raise OSError("it is a device, pipe or socket; wanted a file")


def _locked_scratch(target: Path) -> tuple[Path, int]:
    while True:
        name = tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.vitslim-", suffix=".part")
        # Between the two lines another process may sweep it away.
        with suppress(FileNotFoundError, BlockingIOError):
            handle = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
            try:
                _lock(handle)
                if os.path.exists(name):
                    return Path(name), handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)


def _lock(handle: int) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks, where nothing is swept either
        return


def _sweep(folder: Path) -> None:
    """Remove scratch folders whose process is gone."""
    for place in folder.iterdir():
        if not _SCRATCH.fullmatch(place.name):
            continue
        with suppress(OSError):  # somebody else's, or somebody works in it
            handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)
            finally:
                os.close(handle)


def _replace_folder(scratch: Path, target: Path, aside: Path) -> None:
    # A rename cannot replace a folder that holds files: the old one steps aside, and back if the new one fails.
    shutil.rmtree(aside, ignore_errors=True)
    if not target.exists():
        scratch.rename(target)
        return
    target.rename(aside)
    try:
        scratch.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _sort_metadata_(path: Path) -> None:
    # The library writes the metadata in the order of a hash map, another one in each process. Sorted it is as long.
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        file.seek(8)
        file.write(text.ljust(size))


def _flush(path: Path) -> None:
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
