"""What a loader hands out: batches, with an account of the images that could not be read."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitslim.errors import DataError, VitslimWarning

MAX_CLASSES = 10**7
MAX_EXAMPLES = 5  # unreadable images named in messages


@runtime_checkable
class Preprocessing(Protocol):
    """How a model wants its images; `vitslim.models.preprocessing` reads it off a timm model."""

    @property
    def image_size(self) -> tuple[int, int]: ...
    @property
    def mean(self) -> tuple[float, ...]: ...
    @property
    def std(self) -> tuple[float, ...]: ...
    @property
    def interpolation(self) -> str: ...
    @property
    def crop_pct(self) -> float: ...
    @property
    def channels(self) -> int: ...


@dataclass(frozen=True)
class Batch:
    """Images as the model wants them, with their classes where the data has any."""

    images: Float[Tensor, "b c h w"]
    labels: Int[Tensor, " b"] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device."""
        labels = None if self.labels is None else self.labels.to(device, non_blocking=True)
        return Batch(self.images.to(device, non_blocking=True), labels)


@dataclass(frozen=True)
class CorruptCount:
    """How many different images could not be read so far, with the names of the first few."""

    count: int = 0
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReadBatch:
    """What a source read for one batch: the good images, and the names of the bad ones."""

    images: Float[Tensor, "b c h w"]
    labels: Int[Tensor, " b"]
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True)
class Contents:
    """What is known of a data set before any image is read."""

    origin: str  # where the images come from, for messages: a folder, a data set's name with its split
    num_images: int
    labelled: bool
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    image_shape: tuple[int, int, int] = (3, 224, 224)  # channels, height, width of what the model gets
    batch_size: int = 1


@runtime_checkable
class Source(Protocol):
    """Reads the batches of one pass."""

    def read(self, epoch: int, start: int) -> Iterator[ReadBatch]:
        """Read the pass ``epoch`` from its batch number ``start`` on."""
        ...

    def __len__(self) -> int: ...
    def share(self, rank: int, world: int) -> "Source":
        """The part of this source that one of ``world`` processes reads."""
        ...


@dataclass
class Loader:
    """Batches of one split; every iteration is one pass, the same one until `set_epoch` names another."""

    source: Source
    contents: Contents
    max_corrupt_share: float = 0.01
    position: int = field(default=0, init=False)  # number of the batch that comes next in this pass
    _start: int = field(default=0, init=False)  # the batch at which the next pass begins, once
    _epoch: int = field(default=0, init=False)
    _unreadable: dict[str, None] = field(default_factory=dict[str, None], init=False)

    @property
    def num_images(self) -> int:
        return self.contents.num_images

    @property
    def num_classes(self) -> int | None:
        return self.contents.num_classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return self.contents.class_names

    @property
    def labelled(self) -> bool:
        return self.contents.labelled

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return self.contents.image_shape

    @property
    def batch_size(self) -> int:
        return self.contents.batch_size

    @property
    def origin(self) -> str:
        return self.contents.origin

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Names of the images that could not be read so far, each once however many passes met it."""
        return tuple(self._unreadable)

    @property
    def corrupt(self) -> CorruptCount:
        """How many images could not be read so far, with the first few names."""
        return CorruptCount(len(self._unreadable), self.unreadable[:MAX_EXAMPLES])

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the pass that the next iteration makes, and the batch at which it starts."""
        self._epoch, self._start = epoch, start_batch

    def share(self, rank: int, world: int) -> "Loader":
        """The loader of one of ``world`` processes: together they see every image once per pass."""
        return self if world == 1 else Loader(self.source.share(rank, world), self.contents, self.max_corrupt_share)

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[Batch]:
        # Only ``set_epoch`` starts a pass in the middle; one that was left early does not.
        start, self._start, self.position = self._start, 0, self._start
        for number, batch in enumerate(self.source.read(self._epoch, start), start=start + 1):
            self._account(batch)
            self.position = number
            if len(batch.images):
                yield Batch(batch.images, batch.labels if self.labelled else None)
        self.position = 0

    def _account(self, batch: ReadBatch) -> None:
        self._unreadable.update(dict.fromkeys(batch.unreadable))
        count, allowed = len(self._unreadable), self.max_corrupt_share * self.num_images
        if batch.unreadable and count > allowed:
            raise DataError(
                f"{self.origin}: {count} of {self.num_images} images cannot be read, more than max_corrupt_share="
                f"{self.max_corrupt_share:g} allows; mend or remove them, or raise max_corrupt_share; "
                f"among them {', '.join(self.corrupt.examples)}"
            )
        if not (self.labelled and len(batch.labels)):
            return
        lowest, highest = int(batch.labels.min()), int(batch.labels.max())
        if lowest < 0 or (self.num_classes is not None and highest >= self.num_classes):
            wrong = lowest if lowest < 0 else highest
            classes = "classes" if self.num_classes is None else f"{self.num_classes} classes"
            raise DataError(f"{self.origin}: a label is {wrong}, but there are {classes} (0 first)")


def warn_of_shared_images(train: Loader, held_out: Loader) -> None:
    """Say it where one set of images serves both splits, as a folder without ``train/`` and ``val/`` does."""
    if train.origin == held_out.origin:
        warnings.warn(
            f"{train.origin} serves both training and evaluation: what is measured are images that were trained on; "
            "sort the images into train/ and val/ for figures of held-out ones",
            VitslimWarning,
            stacklevel=3,
        )
