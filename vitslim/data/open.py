"""Opening images by name: folders, Hugging Face data sets, webdataset shards, the built-in fractals,
scikit-learn's digits.
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from vitslim.data.augment import AugmentConfig, make_transform
from vitslim.data.batch import Contents, Loader, Preprocessing, Source
from vitslim.data.catalog import Images, find_folder, find_hfds
from vitslim.data.digits import CLASSES, open_digit_pairs
from vitslim.data.digits import NAME as DIGITS
from vitslim.data.fractal import FractalConfig, Split
from vitslim.data.fractal_set import FractalDataset, open_fractals
from vitslim.data.order import Order, spread
from vitslim.data.samples import ImageTransform, SampleSource
from vitslim.data.shards import find_shards
from vitslim.data.spec import DataConfig, parse_fractals
from vitslim.data.tensors import TensorSource
from vitslim.errors import ConfigError, DataError

__all__ = ["DataConfig", "open_data"]

Labels = Literal["auto", "require", "ignore"]


def open_data(
    spec: str | Path | FractalConfig | DataConfig,
    *,
    split: Split,
    preprocessing: Preprocessing,
    batch_size: int | None = None,
    training: bool = False,
    augment: AugmentConfig | None = None,
    limit: int | None = None,
    reserved: int = 0,
    seed: int = 0,
    workers: int | None = None,
    labels: Labels = "auto",
    num_classes: int | None = None,
) -> Loader:
    """Open one split of a data set as batches for one model.

    Args:
        spec: a folder of images, ``hfds/NAME``, ``wds/FOLDER``, ``fractals`` with options
            (``fractals:classes=20,train_per_class=50``), ``sklearn-digit-pairs``, or a config.
        preprocessing: how the model wants its images; what a config states of it goes before.
        training: shuffle, drop an incomplete last batch, augment.
        augment: how to change training images; not given means the mild default.
        limit: take only this many images, spread evenly over the classes.
        reserved: leave out those that a ``limit`` of so many takes, which other uses are kept for.
        workers: processes that decode images; the built-in images need none.
        labels: whether they are taken where there are some, needed, or left out.
        num_classes: outputs of the model; labelled data must have as many classes.

    Raises:
        DataError: the data is missing, empty, unreadable, unlabelled where labels are needed, or of another number
            of classes.
        ConfigError: an option that the kind of data does not have.
        MissingDependencyError: the kind of data needs a library that is not installed.
    """
    if isinstance(spec, DataConfig):
        config = spec
        preprocessing = _prepared(preprocessing, spec)
        labels = "ignore" if spec.labels == "ignore" else labels
    else:
        config = DataConfig() if isinstance(spec, FractalConfig) else DataConfig(source=str(spec))
    if limit is not None and limit < 1:
        raise ConfigError(f"limit={limit}: give at least 1 image, or no limit for all")
    request = _Request(
        preprocessing,
        batch_size=config.batch_size if batch_size is None else batch_size,
        training=training,
        augment=augment or AugmentConfig(),
        limit=limit,
        reserved=reserved,
        seed=seed,
        workers=config.workers if workers is None else workers,
    )
    if isinstance(spec, FractalConfig):
        source, contents = request.fractals(spec, split)
    else:
        source, contents = request.open(config, split, labels)
    return _checked(source, contents, labels, num_classes, config.max_corrupt_share)


@dataclass(frozen=True)
class _Wanted:
    """What a model wants, less what the user states otherwise."""

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    channels: int


def _prepared(wanted: Preprocessing, config: DataConfig) -> Preprocessing:
    known = {field.name: getattr(wanted, field.name) for field in fields(_Wanted)}
    return _Wanted(**{**known, **config.stated}) if config.stated else wanted


@dataclass(frozen=True)
class _Request:
    """What is asked for apart from the data itself."""

    preprocessing: Preprocessing
    batch_size: int
    training: bool
    augment: AugmentConfig
    limit: int | None
    reserved: int
    seed: int
    workers: int

    def open(self, config: DataConfig, split: Split, labels: Labels) -> tuple[Source, Contents]:
        kind, _, rest = config.source.partition("/")
        if config.source == "fractals" or config.source.startswith("fractals:"):
            return self.fractals(parse_fractals(config.source), split)
        if kind == "wds":
            if self.reserved:
                raise ConfigError("shards are read in order, so that no images of theirs can be reserved")
            return self.shards(config, rest, split)
        if config.source == DIGITS:
            return self.digits(split)
        images = find_hfds(config, rest, split) if kind == "hfds" else find_folder(config, split, labels != "ignore")
        return self.samples(images)

    def fractals(self, config: FractalConfig, split: Split) -> tuple[Source, Contents]:
        dataset = open_fractals(config, split)
        origin = f"fractals ({split})"
        if self.training and self.augment.needs_files:
            classes = tuple(dataset.classes)
            return self.samples(Images(origin, _FractalReader(dataset), dataset.tensors()[1], classes, len(classes)))
        if self.preprocessing.channels != 3:
            raise ConfigError(f"the built-in images have 3 channels, the model wants {self.preprocessing.channels}")
        return self._tensors(origin, *dataset.tensors(), tuple(dataset.classes))

    def digits(self, split: Split) -> tuple[Source, Contents]:
        if self.training and self.augment.needs_files:
            raise ConfigError(
                f"{DIGITS} are moved, not cropped: give data.augment.shift, and no crop_scale or the like"
            )
        return self._tensors(f"{DIGITS} ({split})", *open_digit_pairs(split), CLASSES)

    def _tensors(self, origin: str, pixels: Tensor, labels: Tensor, names: tuple[str, ...]) -> tuple[Source, Contents]:
        subset = self._subset(labels, len(labels))
        augment = self.augment if self.training else None
        source = TensorSource(pixels, labels, subset, self._order(len(subset)), self.preprocessing, augment)
        return source, self._contents(origin, len(subset), len(names), names)

    def samples(self, images: Images) -> tuple[Source, Contents]:
        subset = self._subset(images.labels, len(images.reader))
        source = SampleSource(
            images.reader, subset, self._order(len(subset)), self._transform(), self._mode(), self.workers
        )
        source.check_readable(images.origin)
        names = images.class_names
        return source, self._contents(images.origin, len(subset), images.num_classes, names, images.labels is not None)

    def shards(self, config: DataConfig, folder: str, split: Split) -> tuple[Source, Contents]:
        source, origin, count = find_shards(
            config,
            Path(folder),
            split,
            transform=self._transform(),
            mode=self._mode(),
            batch_size=self.batch_size,
            training=self.training,
            limit=self.limit,
            seed=self.seed,
            workers=self.workers,
        )
        return source, self._contents(origin, count, config.num_classes, None)

    def _subset(self, labels: Tensor | None, images: int) -> Tensor:
        free = torch.arange(images)
        if self.reserved:
            free = free[~torch.isin(free, spread(labels, images, self.reserved, self.seed))]
            labels = None if labels is None else labels[free]
            if not len(free):
                raise DataError(f"all of the {images} images are reserved; give more images or reserve fewer")
        return free if self.limit is None else free[spread(labels, len(free), self.limit, self.seed)]

    def _order(self, images: int) -> Order:
        return Order(images, self.batch_size, self.training, self.augment.repeats, self.seed)

    def _mode(self) -> str:
        if self.preprocessing.channels not in (1, 3):
            raise ConfigError(f"the model wants {self.preprocessing.channels} channels; image files give 1 or 3")
        return "RGB" if self.preprocessing.channels == 3 else "L"

    def _transform(self) -> ImageTransform:
        wants, changes = self.preprocessing, self.augment
        shared: dict[str, Any] = {
            "input_size": (wants.channels, *wants.image_size),
            "mean": wants.mean,
            "std": wants.std,
        }
        if not self.training:
            return make_transform(**shared, interpolation=wants.interpolation, crop_pct=wants.crop_pct)
        return make_transform(
            **shared,
            is_training=True,
            interpolation=wants.interpolation,
            scale=changes.crop_scale,
            hflip=changes.hflip,
            vflip=changes.vflip,
            color_jitter=changes.color_jitter,
            auto_augment=changes.auto_augment,
            re_prob=changes.erase,
        )

    def _contents(
        self, origin: str, count: int, classes: int | None, names: tuple[str, ...] | None, labelled: bool = True
    ) -> Contents:
        shape = (self.preprocessing.channels, *self.preprocessing.image_size)
        return Contents(origin, count, labelled, classes, names, shape, min(self.batch_size, count))


class _FractalReader:
    """The built-in images one by one, for augmentation that works on single images."""

    def __init__(self, dataset: FractalDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self._dataset[index]

    def filename(self, index: int) -> str:
        return f"fractal {index}"


def _checked(
    source: Source, contents: Contents, labels: Labels, num_classes: int | None, max_corrupt_share: float
) -> Loader:
    """Make the loader, if the labels are what is asked for."""
    if labels == "ignore":
        contents = replace(contents, labelled=False, num_classes=None, class_names=None)
    if labels == "require" and not contents.labelled:
        raise DataError(f"{contents.origin} has no labels and they are needed; sort the images into class folders")
    if contents.num_classes is None and contents.labelled:
        contents = replace(contents, num_classes=num_classes)  # shards do not tell; every batch is checked
    found = contents.num_classes
    if num_classes is not None and found is not None and found != num_classes:
        raise DataError(
            f"{contents.origin}: given {found} classes, model has {num_classes} outputs; give data of the model's "
            f"classes, open the model with a classifier of its own for them, to be trained (`vitslim train MODEL "
            f"--num-classes {found}`, num_classes={found}), or name the classes in label order (data.class_map=FILE); "
            "where labels are not needed leave them out (data.labels=ignore, labels='ignore')"
        )
    return Loader(source, contents, max_corrupt_share)
