"""Batches out of one big tensor of pixels, without worker processes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from vitslim.data.augment import AugmentConfig, augment_pixels, erase_boxes, normalize
from vitslim.data.batch import Preprocessing, ReadBatch
from vitslim.data.order import Order
from vitslim.data.randomness import derive_seed


@dataclass(frozen=True)
class TensorSource:
    """Pixels (a memory map is welcome) read batch by batch; augmentation works on whole batches."""

    images: UInt8[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    subset: Int[Tensor, " k"]  # the images that take part, by index
    order: Order
    preprocessing: Preprocessing
    augment: AugmentConfig | None = None

    def __len__(self) -> int:
        return len(self.order)

    def share(self, rank: int, world: int) -> "TensorSource":
        return replace(self, order=replace(self.order, rank=rank, world=world))

    def read(self, epoch: int, start: int) -> Iterator[ReadBatch]:
        for number, positions in enumerate(self.order.batches(epoch)[start:], start=start):
            indices = self.subset[positions]
            images = self.images[indices]
            generator = torch.Generator().manual_seed(derive_seed(self.order.seed, epoch, number, self.order.rank))
            if self.augment is not None:
                images = augment_pixels(images, self.augment, generator)
            pixels = normalize(images, self.preprocessing)
            if self.augment is not None and self.augment.erase:
                pixels = erase_boxes(pixels, self.augment.erase, generator)
            yield ReadBatch(pixels, self.labels[indices])
