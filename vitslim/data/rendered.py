"""Fractal images drawn while a model trains, on the device where it trains: nothing is stored, none comes twice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from vitslim.data.augment import normalize
from vitslim.data.batch import Contents, Loader, Preprocessing, ReadBatch
from vitslim.data.fractal import FractalConfig, Split, labels_of, render
from vitslim.data.order import Order
from vitslim.errors import ConfigError


@dataclass(frozen=True)
class RenderedSource:
    """Batches of ``vitslim.data.fractal.render``, which are a function of their indices alone.

    They are not augmented: with enough images per class a model sees each once, which no augmentation betters.
    """

    config: FractalConfig
    split: Split
    order: Order
    preprocessing: Preprocessing
    device: torch.device
    first: int = 0

    def __len__(self) -> int:
        return len(self.order)

    def share(self, rank: int, world: int) -> RenderedSource:
        return replace(self, order=replace(self.order, rank=rank, world=world))

    def read(self, epoch: int, start: int) -> Iterator[ReadBatch]:
        for indices in self.order.batches(epoch)[start:]:
            # Labels stay on the CPU, where they are looked at without waiting for the device.
            indices = indices + self.first
            pixels = render(self.config, self.split, indices, self.device)
            yield ReadBatch(normalize(pixels, self.preprocessing), labels_of(self.config, indices))


def open_rendered(
    config: FractalConfig,
    *,
    split: Split,
    preprocessing: Preprocessing,
    batch_size: int,
    device: torch.device | str,
    training: bool = False,
    limit: int | None = None,
    reserved: int = 0,
    seed: int = 0,
) -> Loader:
    """Open a split of the built-in images without drawing it first.

    Args:
        config: the same one gives the same images as the stored set, pixel for pixel on a CPU.
        preprocessing: how the model wants its images; another size than the config's is resized to.
        device: where images are drawn and left.
        training: shuffle, drop an incomplete last batch.
        limit: take only this many images, of all classes alike.
        reserved: leave out those that a ``limit`` of so many takes.

    Raises:
        ConfigError: the model does not want three channels, or all images are reserved.
    """
    if preprocessing.channels != 3:
        raise ConfigError(f"the built-in images have 3 channels, the model wants {preprocessing.channels}")
    # Classes follow each other from image to image, so that any stretch has all of them.
    count = config.count(split) - reserved
    if count < 1:
        raise ConfigError(f"all of the {config.count(split)} images are reserved; ask for more, or reserve fewer")
    count = count if limit is None else min(count, limit)
    order = Order(count, batch_size, training, seed=seed)
    source = RenderedSource(config, split, order, preprocessing, torch.device(device), reserved)
    width = len(str(config.classes - 1))
    names = tuple(f"fractal_{label:0{width}d}" for label in range(config.classes))
    contents = Contents(
        origin=f"fractals drawn on the fly ({split})",
        num_images=count,
        labelled=True,
        num_classes=config.classes,
        class_names=names,
        image_shape=(3, *preprocessing.image_size),
        batch_size=min(batch_size, count),
    )
    return Loader(source, contents)
