"""Folders of small images, and what a small model wants of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@dataclass(frozen=True)
class Wanted:
    image_size: tuple[int, int] = (16, 16)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.25, 0.25, 0.25)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    channels: int = 3


@pytest.fixture
def wanted() -> Wanted:
    return Wanted()


def make_image(number: int, side: int = 20) -> Image.Image:
    """One plain grey level per number, so that a pixel tells which image it is."""
    return Image.fromarray(np.full((side, side, 3), number, dtype=np.uint8))


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write ``per_class`` images into each class folder; image k of all has the grey level k."""

    def write(place: str = "images", classes: tuple[str, ...] = ("ant", "bee", "cat"), per_class: int = 4) -> Path:
        for label, name in enumerate(classes):
            folder = tmp_path / place / name
            folder.mkdir(parents=True, exist_ok=True)
            for index in range(per_class):
                make_image(label * per_class + index).save(folder / f"{index:02d}.png")
        return tmp_path / place.split("/")[0]

    return write
