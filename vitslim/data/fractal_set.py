"""The fractal images as a data set: drawn once, then read from a cache on disk."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from vitslim.data.fractal import GENERATOR_VERSION, FractalConfig, Split, labels_of, render, split_shape
from vitslim.errors import CheckpointError, DataError
from vitslim.files import atomic_path, cache_root

MAX_BYTES = 16 * 2**30  # of a drawn split, some hours of drawing; the built-in task has 0.4 GiB

Progress = Callable[[int, int], None]


class FractalDataset(Dataset[tuple[Any, int]]):
    """Fractal images as (image, label) samples, in the manner of timm's ImageDataset.

    Attributes:
        classes: a name per class, in label order.
        transform: called with each PIL image when given; a loader may set it later, as timm's does.
    """

    def __init__(
        self,
        config: FractalConfig,
        split: Split,
        images: npt.NDArray[np.uint8],
        transform: Callable[[Image.Image], Any] | None = None,
    ) -> None:
        """Wrap images that are already drawn; `open_fractals` draws them.

        Args:
            images: every image of the split in index order, [n, 3, h, w]; a memory map is welcome.

        Raises:
            DataError: the images are not those of the config.
        """
        wanted = split_shape(config, split)
        if images.shape != wanted or images.dtype != np.uint8:
            raise DataError(f"images {images.shape} {images.dtype}: this config's {split!r} split is {wanted} uint8")
        self.config = config
        self.split: Split = split
        self.transform = transform
        self.classes = [f"fractal_{label:0{len(str(config.classes - 1))}d}" for label in range(config.classes)]
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """One sample: the PIL image, or what `transform` makes of it, with its class."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index}: the {self.split!r} split has {len(self)} images")
        index %= len(self)
        image = Image.fromarray(np.ascontiguousarray(self._images[index].transpose(1, 2, 0)))
        return (image if self.transform is None else self.transform(image)), index % self.config.classes

    def tensors(self) -> tuple[UInt8[Tensor, "n 3 h w"], Int[Tensor, " n"]]:
        """All images and their classes as tensors; the images share the memory map and load as they are touched."""
        return torch.from_numpy(self._images), labels_of(self.config, torch.arange(len(self)))


def open_fractals(
    config: FractalConfig,
    split: Split,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> FractalDataset:
    """Open a split from the cache on disk; draw it first where the cache lacks it or holds a damaged file.

    Args:
        cache_dir: folder of the caches; not given means $VITSLIM_CACHE, else ~/.cache/vitslim.
        progress: called with (images drawn, images in all) while drawing.

    Raises:
        ConfigError: the split is unknown.
        DataError: the cache folder cannot be written, or a class of this seed has no usable parameter set.
    """
    folder = Path(cache_dir or cache_root())
    path = folder / _cache_name(config, split)
    images = _load_cache(path, split_shape(config, split))
    if images is None:
        _refuse_too_many(config, split, folder)
        try:
            _write_cache(path, config, split, progress)
        except (CheckpointError, OSError) as error:
            raise DataError(f"cannot write {path}: {error}; pass a writable cache_dir or set VITSLIM_CACHE") from error
        images = _load_cache(path, split_shape(config, split))
    if images is None:
        raise DataError(f"{path} was written but does not read back; check the disk or pass another cache_dir")
    return FractalDataset(config, split, images)


def _refuse_too_many(config: FractalConfig, split: Split, folder: Path) -> None:
    """Refuse to draw what no disk should take, before hours of drawing."""
    n, channels, height, width = split_shape(config, split)
    size = n * channels * height * width
    present = next((place for place in (folder, *folder.parents) if place.is_dir()), Path())
    room = min(MAX_BYTES, shutil.disk_usage(present).free)
    if size > room:
        raise DataError(
            f"fractals ({split}): {n} images of {height} px are {size / 2**30:.1f} GiB, more than the "
            f"{room / 2**30:.1f} GiB that there is room for; ask for fewer classes, fewer or smaller images"
        )


def _cache_name(config: FractalConfig, split: Split) -> str:
    """A file name that changes whenever the images would."""
    words = json.dumps([GENERATOR_VERSION, split, dataclasses.asdict(config)], sort_keys=True)
    return f"fractals-{split}-{hashlib.sha256(words.encode()).hexdigest()[:16]}.npy"


def _load_cache(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8] | None:
    """Map a cache into memory, or None where it is absent, truncated or of another shape."""
    try:
        # Copy-on-write: torch warns about read-only arrays, and a stray write must never reach the file.
        images = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    is_whole = images.shape == shape and images.dtype == np.uint8 and path.stat().st_size == images.offset + images.size
    return images if is_whole else None


def _write_cache(path: Path, config: FractalConfig, split: Split, progress: Progress | None) -> None:
    """Draw a split into a temporary file beside `path`, then rename it: readers see a whole file or none."""
    shape = split_shape(config, split)
    with atomic_path(path) as scratch, scratch.open("wb") as file:
        header: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, shape[0], 512):
            stop = min(start + 512, shape[0])
            file.write(render(config, split, torch.arange(start, stop)).numpy().tobytes())
            if progress is not None:
                progress(stop, shape[0])
