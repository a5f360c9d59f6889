"""Batches out of image files that are read one by one, if need be in worker processes."""

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vitslim.data.batch import MAX_EXAMPLES, ReadBatch
from vitslim.data.order import Order
from vitslim.data.randomness import seeded
from vitslim.errors import DataError

ImageTransform = Callable[[Image.Image], Tensor]

MAX_ASPECT = 64  # of the sides of an image, that are looked at

# What Pillow and its decoders raise on damaged files.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@runtime_checkable
class Reader(Protocol):
    """Random access to encoded images, as timm's readers give it."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[IO[bytes] | Image.Image, int]: ...
    def filename(self, index: int, /) -> str: ...


@dataclass(frozen=True)
class Sample:
    """One image, or the name of the file that could not be read."""

    image: Tensor | None
    label: int = -1
    unreadable: str | None = None


@dataclass(frozen=True)
class SampleSource:
    """Images of a reader, decoded and transformed one by one."""

    reader: Reader
    subset: Int[Tensor, " k"]  # the images that take part, by index
    order: Order
    transform: ImageTransform
    mode: str  # Pillow's: "RGB" or "L"
    workers: int = 0

    def __len__(self) -> int:
        return len(self.order)

    def share(self, rank: int, world: int) -> "SampleSource":
        return replace(self, order=replace(self.order, rank=rank, world=world))

    def read(self, epoch: int, start: int) -> Iterator[ReadBatch]:
        samples = _Samples(self, epoch)
        keys: list[list[tuple[int, int]]] = []
        place = 0
        for positions in self.order.batches(epoch):
            indices = self.subset[positions].tolist()
            keys.append([(index, place + offset) for offset, index in enumerate(indices)])
            place += len(indices)
        yield from DataLoader(
            samples,
            batch_sampler=keys[start:],
            num_workers=self.workers,
            collate_fn=collate,  # pyright: ignore
        )

    def check_readable(self, origin: str) -> None:
        """Try a few images, so that a folder of anything else is refused at once.

        Raises:
            DataError: none of them can be read.
        """
        count = len(self.subset)
        tried = sorted({int(self.subset[place * (count - 1) // 7]) for place in range(8)})
        samples = [read_sample(self, index) for index in tried]
        if all(sample.image is None for sample in samples):
            names = ", ".join(str(sample.unreadable) for sample in samples[:MAX_EXAMPLES])
            raise DataError(f"{origin}: no readable image; tried {len(tried)} of {count}, such as {names}")


class _Samples(Dataset[Sample]):
    """The samples of one pass; every one is a function of the seed, the pass and its place in the pass."""

    def __init__(self, source: SampleSource, epoch: int) -> None:
        self._source = source
        self._words = (source.order.seed, epoch, source.order.rank)

    def __len__(self) -> int:
        return len(self._source.subset)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        index, place = key
        if not self._source.order.training:
            return read_sample(self._source, index)
        with seeded(*self._words, place):
            return read_sample(self._source, index)


def read_sample(source: SampleSource, index: int) -> Sample:
    """Read, decode and transform one image."""
    try:
        stream, label = source.reader[index]
        with stream:  # files and images alike
            image = stream if isinstance(stream, Image.Image) else Image.open(stream)
            pixels = _without_ends(_in_mode(image, source.mode))
    except UNREADABLE:
        return Sample(None, unreadable=source.reader.filename(index))
    return Sample(source.transform(pixels), label)


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """An image of any kind in colour or grey; transparency is left out."""
    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts 16 bits off at 255, which leaves white.
        return image.point(lambda level: level / 256).convert("L").convert(mode)
    if image.mode in ("I", "F"):
        raise OSError(f"{image.mode} images have no known range")
    if image.mode == "P":  # with transparent entries Pillow asks for this detour
        image = image.convert("RGBA")
    return image.convert(mode)


def _without_ends(image: Image.Image) -> Image.Image:
    """An image without what lies far from its middle, where one side is many times the other.

    The crop from the middle does not see it, but bringing 1x20000 to a height of 256 takes four gigabytes.
    """
    reach = MAX_ASPECT * min(image.size)
    if max(image.size) <= reach:
        return image
    left, top = (max(0, (side - reach) // 2) for side in image.size)
    return image.crop((left, top, left + min(image.width, reach), top + min(image.height, reach)))


def collate(samples: Sequence[Sample]) -> ReadBatch:
    """Put the images that could be read into one batch, with the names of those that could not."""
    good = [sample.image for sample in samples if sample.image is not None]
    labels = torch.tensor([sample.label for sample in samples if sample.image is not None], dtype=torch.int64)
    bad = tuple(sample.unreadable for sample in samples if sample.unreadable is not None)
    return ReadBatch(torch.stack(good) if good else torch.zeros(0, 3, 1, 1), labels, bad)


def as_reader(reader: Any) -> Reader:
    """Timm's readers carry no type; they do what `Reader` asks for."""
    return reader
