"""Overlapping pairs of the handwritten digits that scikit-learn ships; the class is the pair, in either order.

As in MultiMNIST (Sabour et al., "Dynamic Routing Between Capsules", NeurIPS 2017, arXiv 1710.09829): two digits lie on
one canvas, each moved by some pixels. Every second of the 1,797 digits is held out, so no digit is in both splits.
"""

from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Int, UInt8
from torch import Tensor

from vitslim.data.fractal import Split
from vitslim.errors import MissingDependencyError

NAME = "sklearn-digit-pairs"
PAIRS = torch.triu_indices(10, 10).T
"""The two digits of each class, the smaller first."""
CLASSES = tuple(f"{first}+{second}" for first, second in PAIRS.tolist())
COUNTS = {"train": 12_000, "val": 5_000}
SIDE, DIGIT = 48, 32  # pixels of the canvas and of an enlarged digit


def open_digit_pairs(split: Split) -> tuple[UInt8[Tensor, "n 3 h w"], Int[Tensor, " n"]]:
    """Pixels and classes of one split, the same in every call.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    if find_spec("sklearn") is None:
        raise MissingDependencyError(f"{NAME} needs scikit-learn: pip install scikit-learn")
    from sklearn.datasets import load_digits

    found: Any = load_digits()
    chosen = slice(1 if split == "train" else 0, None, 2)
    # Levels go from 0 to 16.
    small = torch.from_numpy(found.images[chosen]).float()[:, None] * (255 / 16)
    large = F.interpolate(small, (DIGIT, DIGIT), mode="bicubic", align_corners=False).clamp(0, 255).round().byte()
    digits, names = large[:, 0], torch.from_numpy(found.target[chosen])

    generator = torch.Generator().manual_seed(1 if split == "train" else 0)
    drawn = torch.randint(len(digits), (COUNTS[split], 2), generator=generator)
    corners = torch.randint(SIDE - DIGIT + 1, (COUNTS[split], 2, 2), generator=generator)
    layers = torch.zeros(COUNTS[split], 2, SIDE, SIDE, dtype=torch.uint8)
    rows, columns = (corners[..., None] + torch.arange(DIGIT)).unbind(2)
    image, layer = torch.arange(COUNTS[split])[:, None, None, None], torch.arange(2)[None, :, None, None]
    layers[image, layer, rows[..., :, None], columns[..., None, :]] = digits[drawn]
    pixels = layers.amax(1)
    first, second = names[drawn].sort(1).values.unbind(1)
    # Classes in the order of PAIRS: those with a smaller first digit take 10 + 9 + ... places.
    labels = first * (21 - first) // 2 + second - first
    return pixels[:, None].expand(-1, 3, -1, -1).contiguous(), labels
