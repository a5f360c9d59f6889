"""Batches out of webdataset shards: tar files that are read from front to back."""

import logging
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from timm.data.dataset_factory import create_dataset
from torch.utils.data import DataLoader, IterableDataset

from vitslim.data.batch import MAX_CLASSES, ReadBatch
from vitslim.data.fractal import Split
from vitslim.data.randomness import seeded
from vitslim.data.samples import ImageTransform, Sample, collate
from vitslim.data.spec import DataConfig
from vitslim.errors import ConfigError, DataError, MissingDependencyError

IMAGE_ENDINGS = (".jpg", ".png", ".webp")  # what timm reads from shards
make_dataset: Any = create_dataset  # timm declares every kind of data set at once

_SPECIAL = re.compile(r"[{}|:]|\.\.")  # to webdataset: counting, commands, several names
_TIMM_LOG = "timm.data.readers.reader_wds"  # where timm tells of images that it skips


@dataclass(frozen=True)
class ShardSource:
    """Shards of one split; a pass reads each image once, in training shuffled within a buffer."""

    folder: str
    pattern: str  # names of the shards as webdataset writes them, or a split's name in the folder's info file
    count: int  # images in all shards
    limit: int
    transform: ImageTransform
    mode: str
    batch_size: int
    training: bool
    seed: int
    workers: int = 0

    def __len__(self) -> int:
        return max(1, self.limit // self.batch_size) if self.training else -(-self.limit // self.batch_size)

    def share(self, rank: int, world: int) -> "ShardSource":
        raise ConfigError("shards (wds/) are read by one process; use a folder or hfds/ for distributed training")

    def read(self, epoch: int, start: int) -> Iterator[ReadBatch]:
        loader = DataLoader(
            _Samples(self, epoch),
            batch_size=self.batch_size,
            num_workers=min(self.workers, 1),  # with one reader the order does not depend on the machine
            collate_fn=collate,  # pyright: ignore[reportArgumentType]
        )
        yield from islice(loader, start, len(self))


class _Samples(IterableDataset[Sample]):
    """The samples of one pass, the unreadable ones by name."""

    def __init__(self, source: ShardSource, epoch: int) -> None:
        self._source, self._epoch = source, epoch

    def __iter__(self) -> Iterator[Sample]:
        source = self._source
        kept, seen = 0, 0
        with _skipped_images() as skipped:
            reader = self._open()
            skipped.clear()  # timm misses an info file, which is optional
            for image, label in reader:
                yield from self._unreadable(skipped)
                seen += 1
                # Of every count / limit images the last one.
                if seen * source.limit // source.count <= kept:
                    continue
                kept += 1
                with seeded(source.seed, self._epoch, seen):
                    pixels = source.transform(image)
                if abs(int(label)) >= MAX_CLASSES:
                    raise DataError(f"{source.folder}: a label is {label}; wanted whole numbers from 0")
                yield Sample(pixels, int(label))
            yield from self._unreadable(skipped)

    def _open(self) -> Any:
        source = self._source
        try:
            reader: Any = make_dataset(
                "wds/shards",
                root=source.folder,
                split=source.pattern,
                is_training=source.training,
                batch_size=1,
                num_samples=source.count,
                seed=source.seed,
                input_img_mode=source.mode,
            ).reader
        except Exception as error:  # of many kinds, from an info file that is none
            raise DataError(f"{source.folder} cannot be opened as shards ({type(error).__name__}: {error})") from error
        reader.set_epoch(self._epoch)
        return reader

    def _unreadable(self, skipped: list[str]) -> Iterator[Sample]:
        while skipped:
            yield Sample(None, unreadable=f"{self._source.folder}: {skipped.pop(0)}")


class _skipped_images(logging.Handler):
    """Listens to timm, which skips unreadable images of shards and says so in its log only."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._found: list[str] = []
        self._log = logging.getLogger(_TIMM_LOG)

    def emit(self, record: logging.LogRecord) -> None:
        self._found.append(record.getMessage())

    def __enter__(self) -> list[str]:
        self._log.addHandler(self)
        self._was_heard, self._log.propagate = self._log.propagate, False
        return self._found

    def __exit__(self, *_: object) -> None:
        self._log.removeHandler(self)
        self._log.propagate = self._was_heard


def find_shards(
    config: DataConfig,
    folder: Path,
    split: Split,
    *,
    transform: ImageTransform,
    mode: str,
    batch_size: int,
    training: bool,
    limit: int | None,
    seed: int,
    workers: int,
) -> tuple[ShardSource, str, int]:
    """Find the shards of one split in a folder, by the split's name at the front of their file names.

    Returns:
        The source, its name for messages, the number of images that take part.

    Raises:
        DataError: the folder, its shards or their images are missing.
        MissingDependencyError: the library `webdataset` is not installed.
    """
    if find_spec("webdataset") is None:
        raise MissingDependencyError(f"wds/{folder} needs webdataset: pip install 'vitslim[data]'")
    if not folder.is_dir():
        raise DataError(f"wds/{folder}: {folder} is not a folder; give the folder that holds the .tar shards")
    wanted = config.split_names(split)
    tars = sorted(path for path in folder.iterdir() if path.suffix == ".tar" and path.is_file())
    shards = next((found for name in wanted if (found := [tar for tar in tars if fnmatch(tar.name, f"*{name}*")])), [])
    if not shards:
        present = ", ".join(tar.name for tar in tars[:5]) or "no .tar file"
        raise DataError(
            f"wds/{folder} has no split {split!r}: looked for {', '.join(f'*{name}*.tar' for name in wanted)}, "
            f"found {present}; name it with {split}_split"
        )
    odd = [shard.name for shard in shards if _SPECIAL.search(shard.name)]
    if odd:
        raise DataError(f"wds/{folder}: webdataset takes {odd[0]} for a pattern of names; give the file a plain name")
    count = sum(count_images(shard) for shard in shards)
    if not count:
        raise DataError(f"wds/{folder}: no image in {', '.join(path.name for path in shards[:5])}")
    source = ShardSource(
        folder=str(folder),
        pattern="::".join(path.name for path in shards),
        count=count,
        limit=min(limit or count, count),
        transform=transform,
        mode=mode,
        batch_size=min(batch_size, count),
        training=training,
        seed=seed,
        workers=workers,
    )
    return source, f"wds/{folder} ({split})", source.limit


def count_images(shard: Path) -> int:
    """The images of one shard, from its table of contents."""
    try:
        with tarfile.open(shard) as tar:
            return sum(PurePosixPath(name).suffix.lower() in IMAGE_ENDINGS for name in tar.getnames())
    except (OSError, EOFError, ValueError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{shard} is not a readable tar file ({error})") from None
