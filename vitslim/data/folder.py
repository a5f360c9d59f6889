"""Image files in a folder, each with the name of the folder that it lies in."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from timm.data.readers.img_extensions import get_img_extensions
from timm.utils.misc import natural_key

from vitslim.errors import DataError

_MAX_CLASS_MAP = 2**26  # bytes


@dataclass(frozen=True)
class FolderReader:
    """Random access to the files of a folder."""

    root: Path
    paths: Sequence[str]
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[IO[bytes], int]:
        path = self.paths[index]
        # A pipe would be waited for, and a device has no end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(f"{path} is not a file")
        return open(path, "rb"), self.labels[index]

    def filename(self, index: int) -> str:
        return os.path.relpath(self.paths[index], self.root)


def list_images(folder: Path) -> list[tuple[str, str]]:
    """The paths of all image files within a folder in natural order, each with its class: the name of its own folder.

    Raises:
        DataError: a folder within it cannot be read, or is reached twice by links, which may go round for ever.
    """
    endings = get_img_extensions(as_set=True)
    found: list[tuple[str, str]] = []
    seen: dict[tuple[int, int], str] = {}
    for inner, _, names in os.walk(folder, onerror=_refuse_unreadable, followlinks=True):
        status = os.stat(inner)
        first = seen.setdefault((status.st_dev, status.st_ino), inner)
        if first != inner:
            raise DataError(f"{inner} leads by a link to {first}, which was read already; remove the link")
        label = "" if inner == str(folder) else os.path.basename(inner)
        found += [(os.path.join(inner, name), label) for name in names if os.path.splitext(name)[1].lower() in endings]
    return sorted(found, key=lambda image: natural_key(image[0]))


def number_classes(names: set[str], class_map: str | None) -> dict[str, int]:
    """The label of each class: by the line of a class map, else by natural order.

    Raises:
        DataError: the class map is no list of names, or lacks one of ``names``.
    """
    if class_map is None:
        return {name: label for label, name in enumerate(sorted(names, key=natural_key))}
    known = _read_class_map(Path(class_map))
    missing = sorted(names - known.keys())
    if missing:
        raise DataError(
            f"class_map={class_map!r} has no line for {len(missing)} of the {len(names)} class folders: "
            f"{', '.join(missing[:5])}; add them, or give a folder of its classes alone"
        )
    return known


def _refuse_unreadable(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None


def _read_class_map(path: Path) -> dict[str, int]:
    wanted = f"class_map={str(path)!r} must be a text file (.txt) with one class name per line"
    if not path.is_file() or path.suffix != ".txt" or path.stat().st_size > _MAX_CLASS_MAP:
        raise DataError(wanted)
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{wanted}; it cannot be read ({error})") from None
    numbered = {name: label for label, name in enumerate(names)}
    if "" in numbered or len(numbered) < len(names):
        raise DataError(f"{wanted}, each once; it has empty lines or names a class twice")
    return numbered
