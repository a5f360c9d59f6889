"""Which images make up which batch of which pass."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor

from vitslim.data.randomness import derive_seed


@dataclass(frozen=True)
class Order:
    """The batches of every pass over ``images`` images, a pure function of the seed and the number of the pass.

    In training the images are shuffled anew for each pass and an incomplete last batch is dropped; otherwise they
    come in order and each exactly once. With several processes each takes its share.
    """

    images: int
    batch_size: int
    training: bool
    repeats: int = 0  # augmented copies of an image that fall into one pass (repeated augmentation); 0 and 1: one
    seed: int = 0
    rank: int = 0
    world: int = 1

    def batches(self, epoch: int) -> list[Int[Tensor, " b"]]:
        """The image indices of each batch of a pass."""
        indices = self._indices(epoch)
        size = min(self.batch_size, max(1, len(indices)))
        whole = len(indices) // size * size if self.training else len(indices)
        return list(indices[:whole].split(size))

    def __len__(self) -> int:
        if self.training and self.repeats > 1:
            return len(self.batches(0))
        # Asked for at every step of a training; shuffling millions of images for it would take longer than the step.
        count = self._share()
        size = min(self.batch_size, max(1, count))
        # A process without images has one batch of none.
        return max(1, count // size if self.training else math.ceil(count / size))

    def _share(self) -> int:
        """How many images of a pass fall to this process."""
        last = self.images
        if self.training:
            last = min(last, max(1, self.images // self.world) * self.world)
        return len(range(self.rank, last, self.world))

    def _indices(self, epoch: int) -> Int[Tensor, " n"]:
        if not self.training:
            return torch.arange(min(self.rank, self.images), self.images, self.world)
        seed = derive_seed(self.seed, epoch)
        if self.repeats > 1:
            sampler = RepeatAugSampler(
                range(self.images), num_replicas=self.world, rank=self.rank, num_repeats=self.repeats
            )
            sampler.set_epoch(seed)
            return torch.tensor(list(sampler))
        shuffled = torch.randperm(self.images, generator=torch.Generator().manual_seed(seed))
        # Every process must take the same number of steps, or the others wait for it for ever.
        return shuffled[: max(1, self.images // self.world) * self.world][self.rank :: self.world]


def spread(labels: Int[Tensor, " n"] | None, images: int, limit: int, seed: int) -> Int[Tensor, " k"]:
    """Choose ``limit`` of ``images`` indices, one from each of as many equal stretches, so classes keep their shares.

    Args:
        labels: class of every image, if known: the stretches then run through the images sorted by class.
    """
    if limit >= images:
        return torch.arange(images)
    ordered = torch.arange(images) if labels is None else labels.argsort(stable=True)
    edges = torch.arange(limit + 1) * images // limit
    draws = torch.rand(limit, generator=torch.Generator().manual_seed(derive_seed(seed)), dtype=torch.float64)
    chosen = edges[:-1] + (draws * (edges[1:] - edges[:-1])).long()
    return ordered[chosen].sort().values
