"""The handwritten digits that scikit-learn ships: 1,797 of 8 x 8 pixels, every second one held out."""

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor

from vitslim.data.fractal import Split
from vitslim.errors import MissingDependencyError

NAME = "sklearn-digits"
CLASSES = tuple("0123456789")
SIDE = 48  # pixels, to which they are enlarged


def open_digits(split: Split) -> tuple[UInt8[Tensor, "n 3 h w"], Int[Tensor, " n"]]:
    """Pixels and classes of one split.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    if find_spec("sklearn") is None:
        raise MissingDependencyError(f"{NAME} needs scikit-learn: pip install scikit-learn")
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    chosen = slice(1 if split == "train" else 0, None, 2)
    # Levels go from 0 to 16.
    small = torch.from_numpy(digits.images[chosen]).float()[:, None] * (255 / 16)
    pixels = F.interpolate(small, (SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0, 255).round().byte()
    return pixels.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(digits.target[chosen])
