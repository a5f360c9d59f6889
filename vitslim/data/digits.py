"""The handwritten digits that scikit-learn ships: 1,797 of 8 x 8 pixels, every second one held out."""

from importlib.util import find_spec
from typing import Any

import torch
from PIL import Image

from vitslim.data.catalog import Images
from vitslim.data.fractal import Split
from vitslim.errors import MissingDependencyError

NAME = "sklearn-digits"


def find_digits(split: Split) -> Images:
    """Open one split; a model gets them enlarged to its own size.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    if find_spec("sklearn") is None:
        raise MissingDependencyError(f"{NAME} needs scikit-learn: pip install scikit-learn")
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    chosen = slice(1 if split == "train" else 0, None, 2)
    labels = torch.from_numpy(digits.target[chosen])
    names = tuple(str(name) for name in digits.target_names)
    return Images(f"{NAME} ({split})", _Digits(digits.images[chosen], labels.tolist()), labels, names, len(names))


class _Digits:
    """The images one by one."""

    def __init__(self, images: Any, labels: list[int]) -> None:
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        # Levels go from 0 to 16.
        return Image.fromarray((self._images[index] / 16 * 255).astype("uint8")), self._labels[index]

    def filename(self, index: int) -> str:
        return f"digit {index}"
