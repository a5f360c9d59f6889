"""Where the tokens of a vision transformer come from: prefix, grid, image preprocessing."""

from dataclasses import dataclass
from typing import Any

import timm.data
from torch import nn

from vitslim.errors import UnsupportedModelError
from vitslim.shapes import Count


@dataclass(frozen=True)
class TokenLayout:
    """How the n tokens of one image are laid out: ``prefix`` first, then the patches row by row.

    ``prefix`` counts class, distillation and register tokens; ``grid`` is (rows, columns) of patches.
    """

    prefix: int
    grid: tuple[Count, Count]

    @property
    def patches(self) -> Count:
        return self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> Count:
        return self.prefix + self.patches


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input: size in pixels (height, width), per-channel mean and deviation of 0..1."""

    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    channels: int


def token_layout(model: nn.Module) -> TokenLayout:
    """The layout at the model's own image size.

    Raises:
        UnsupportedModelError: the model has no patch grid.
    """
    embed = getattr(model, "patch_embed", None)
    grid = getattr(embed, "grid_size", None)
    if grid is None:
        raise UnsupportedModelError(f"{type(model).__name__} has no patch grid; vitslim takes isotropic ViTs only")
    return TokenLayout(prefix=int(getattr(model, "num_prefix_tokens", 0)), grid=(int(grid[0]), int(grid[1])))


def preprocessing(model: nn.Module) -> Preprocessing:
    """What timm's pretrained configuration says of the input, at the image size that the model has now."""
    config: dict[str, Any] = timm.data.resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or (height, width)
    return Preprocessing(
        image_size=(int(size[0]), int(size[1])),
        mean=tuple(float(value) for value in config["mean"]),
        std=tuple(float(value) for value in config["std"]),
        interpolation=str(config["interpolation"]),
        crop_pct=float(config["crop_pct"]),
        channels=int(getattr(model, "in_chans", channels)),
    )
