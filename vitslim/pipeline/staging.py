"""Working beside a folder that must not change before the work is whole."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from vitslim.errors import CheckpointError, ConfigError
from vitslim.files import is_vacant, link_or_copy, read_json, reported_as, write_json

_ORIGIN = "origin.json"
_READY = "ready"


class Staging:
    """A copy of a folder in ``.NAME.next`` beside it, whose changes are brought home once all of them are made.

    Its files are hard links: everything of ours replaces files and changes none in place, so that those of the folder
    itself stay as they are. What is brought home is what the work changed, made or removed; whatever others did in the
    folder meanwhile stays. A kill while it is brought home is made good by ``recover``, at the next start.

    Where nothing can be written beside the folder (a mounted volume) the copy lies inside.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        whole = Path(os.path.abspath(target))  # `.` and `..` have names too; links stay links
        self._root = _place_beside(whole) / f".{whole.name}.next"
        self.path = self._root / whole.name
        """Where the work is done; of the folder's own name, which pages show."""
        self._lock: int | None = None

    def recover(self) -> None:
        """Finish to bring home what was whole when a kill came between.

        Raises:
            ConfigError: another process works here.
        """
        if (self._root / _READY).is_dir():
            self.lock()
            self._bring_home()
            self.leave()

    def lock(self) -> None:
        """Keep other processes out, until ``leave`` or the end of this one.

        Raises:
            ConfigError: another process works here.
        """
        if self._lock is not None:
            return
        self._root.mkdir(parents=True, exist_ok=True)
        handle = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise ConfigError(f"another process is working on {self.target} (in {self._root}); wait for it") from None
        except OSError:  # a file system without locks
            pass
        self._lock = handle

    def copy(self, without: Collection[str] = ()) -> None:
        """Make the copy anew.

        Args:
            without: names in the folder that the work does not start from; they go when it is brought home.

        Raises:
            ConfigError: another process works here.
            CheckpointError: no space or no permission; the folder is as it was.
        """
        with reported_as(self.target):
            self.lock()
            try:
                for earlier in sorted(self._root.iterdir(), key=lambda path: path.name != _ORIGIN):
                    _remove(earlier)  # what says that the copy is whole goes first
                origin = {name: _state(path) for name, path in _files(self.target, self._root)}
                left_out = shutil.ignore_patterns(self._root.name, *without)
                shutil.copytree(self.target, self.path, symlinks=True, copy_function=link_or_copy, ignore=left_out)
                # Written last: a copy without it was cut off.
                write_json(self._root / _ORIGIN, origin)
            except BaseException:
                self.drop()
                raise

    @property
    def is_whole(self) -> bool:
        """Whether an earlier process left a whole copy, at which the work can go on."""
        return (self._root / _ORIGIN).is_file() and self.path.is_dir()

    def commit(self) -> None:
        """Bring home what the work changed, and remove the copy."""
        with reported_as(self.target):
            self.path.rename(self._root / _READY)
            self._bring_home()
        self.leave()

    def drop(self) -> None:
        """Remove the copy with all that was done in it."""
        shutil.rmtree(self._root, ignore_errors=True)
        self.leave()

    def leave(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _bring_home(self) -> None:
        # Nothing is moved out of the copy: killed anywhere, this can be done again from its start.
        ready = self._root / _READY
        try:
            origin = TypeAdapter(dict[str, tuple[int, int]]).validate_python(read_json(self._root / _ORIGIN))
        except ValidationError:
            raise CheckpointError(f"{self._root / _ORIGIN} is damaged; remove {self._root}") from None
        made = dict(_files(ready, None))
        for name, path in made.items():
            if origin.get(name) != _state(path):
                _put(path, self._inside(name), self._root / "link")
        for name in origin.keys() - made.keys():
            _remove(self._inside(name))
            for folder in list(Path(name).parents)[:-1]:
                place = self.target / folder
                if not (ready / folder).exists() and place.is_dir() and not any(place.iterdir()):
                    place.rmdir()
        # What is only half there must not be taken for what the work left.
        ready.rename(self._root / "done")
        shutil.rmtree(self._root)

    def _inside(self, name: str) -> Path:
        # The names may come out of a file that somebody else wrote.
        within = list(Path(name).parents)[:-1]
        if ".." in Path(name).parts or name.startswith("/") or any((self.target / one).is_symlink() for one in within):
            raise CheckpointError(f"{self._root} would change {name!r}, outside of {self.target}; remove {self._root}")
        return self.target / name


@contextmanager
def replacing(out: str | Path, *, resume: bool, without: Collection[str] = ()) -> Generator[Path]:
    """Yield where to work so that ``out`` changes only at the end: itself where nothing lies there, else a copy.

    After a failure the copy stays, for ``resume``; without it the next start makes it anew.

    Args:
        out: the folder.
        resume: go on where the last start was cut off.
        without: names in the folder that are not true any more once the work is done.

    Raises:
        ConfigError: another process works there.
    """
    target = Path(out)
    staging = Staging(target)
    staging.recover()
    is_new = not target.is_dir() or is_vacant(target)
    if has_company() or (not staging.is_whole if resume else is_new):
        yield target
        return
    if not resume:
        staging.copy(without)
    staging.lock()
    try:
        yield staging.path
        staging.commit()
    finally:
        staging.leave()


def place_to_resume(out: str | Path) -> Path:
    """Where ``replacing`` goes on with what was cut off: the copy, or ``out`` itself where there is none."""
    staging = Staging(Path(out))
    return staging.path if staging.is_whole else staging.target


def has_company() -> bool:
    """Whether several processes train together; they would each make a copy, and so they work in the folder itself."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _place_beside(target: Path) -> Path:
    if not target.exists():
        return target.parent
    # Beside a mounted volume or behind a link lies another file system.
    is_near = not target.is_symlink() and target.parent.stat().st_dev == target.stat().st_dev
    return target.parent if is_near and os.access(target.parent, os.W_OK) else target


def _files(folder: Path, left_out: Path | None) -> Iterator[tuple[str, Path]]:
    """Everything in a folder that is not itself a folder, by its name within; links are not followed."""
    for path in sorted(folder.rglob("*")):
        if not _is_folder(path) and (left_out is None or left_out not in path.absolute().parents):
            yield str(path.relative_to(folder)), path


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _state(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_size, found.st_mtime_ns


def _put(path: Path, target: Path, link: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove(link)
    link_or_copy(path, link)
    os.replace(link, target)


def _remove(path: Path) -> None:
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
