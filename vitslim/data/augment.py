"""Changing training images at random."""

import re
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from pydantic import Field, field_validator
from timm.data.transforms_factory import create_transform
from torch import Tensor

from vitslim.data.batch import Preprocessing
from vitslim.data.randomness import seeded
from vitslim.shapes import Config

TIMM_CROP_SCALE = (0.08, 1.0)  # share of the area that timm's random crop keeps when nothing is asked for

make_transform: Any = create_transform  # timm declares every kind of result at once


class AugmentConfig(Config):
    """How training images are changed; the defaults are mild, as fits fine-tuning."""

    hflip: float = Field(default=0.5, ge=0, le=1)  # probability of a left-right mirror
    vflip: float = Field(default=0.0, ge=0, le=1)  # probability of an upside-down mirror
    shift: float = Field(default=0.06, ge=0, lt=0.5)  # built-in images: largest move along each axis, share of the side
    crop_scale: tuple[float, float] | None = None  # share of the area a random crop keeps; None: 0.08..1 for files
    color_jitter: float = Field(default=0.0, ge=0, le=10)  # strength of brightness, contrast and saturation changes
    auto_augment: str | None = None  # timm's words, such as "rand-m9-mstd0.5-inc1"
    erase: float = Field(default=0.0, ge=0, le=1)  # probability that one rectangle is blanked
    repeats: int = Field(default=0, ge=0, le=100)  # repeated augmentation: copies of an image in one pass; DeiT uses 3

    @field_validator("crop_scale")
    @classmethod
    def _is_a_range(cls, scale: tuple[float, float] | None) -> tuple[float, float] | None:
        if scale is not None and not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(
                "wanted the smallest and the largest share of the area, above 0 and at most 1, as [0.08, 1]"
            )
        return scale

    @field_validator("auto_augment")
    @classmethod
    def _is_known_to_timm(cls, words: str | None) -> str | None:
        if words is None:
            return None
        try:
            # Numbers count operations and sizes: timm would try thousands of them on every image.
            if re.search(r"\d{4}", words):
                raise ValueError("a number of more than three digits")
            with seeded(0):
                make_transform(32, is_training=True, auto_augment=words)(Image.new("RGB", (32, 32)))
        except (AssertionError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"timm does not know these words ({reason or type(error).__name__}); wanted some as "
                "rand-m9-mstd0.5-inc1, augmix-m3-w3 or original"
            ) from None
        return words

    @property
    def needs_files(self) -> bool:
        """Whether something is asked for that only the image-by-image path can do."""
        return self.crop_scale is not None or self.color_jitter > 0 or self.auto_augment is not None

    def changes(self, *, built_in: bool) -> dict[str, Any]:
        """What is on, by the name of its field.

        Args:
            built_in: the images are vitslim's own, which are moved instead of cropped where nothing ``needs_files``.
        """
        found: dict[str, Any] = {
            name: value for name, value in self.model_dump(exclude={"shift", "crop_scale"}).items() if value
        }
        if built_in and not self.needs_files:
            return found | ({"shift": self.shift} if self.shift else {})
        scale = self.crop_scale or TIMM_CROP_SCALE
        return found | ({} if scale == (1.0, 1.0) else {"crop_scale": scale})


def augment_pixels(
    images: UInt8[Tensor, "b c h w"], config: AugmentConfig, generator: torch.Generator
) -> UInt8[Tensor, "b c h w"]:
    """Mirror and move whole batches at once; what moves in from outside repeats the border."""
    b, _, height, width = images.shape
    draws = torch.rand(4, b, 1, generator=generator)
    rows, columns = torch.arange(height).repeat(b, 1), torch.arange(width).repeat(b, 1)
    rows = torch.where(draws[0] < config.vflip, height - 1 - rows, rows)
    columns = torch.where(draws[1] < config.hflip, width - 1 - columns, columns)
    down, right = ((2 * draws[2:] - 1) * config.shift * torch.tensor([height, width])[:, None, None]).round().long()
    rows, columns = (rows + down).clamp(0, height - 1), (columns + right).clamp(0, width - 1)
    pixels = (rows[:, :, None] * width + columns[:, None, :]).view(b, 1, height * width)
    return images.flatten(2).gather(2, pixels.expand(-1, images.shape[1], -1)).view_as(images)


def erase_boxes(
    images: Float[Tensor, "b c h w"], probability: float, generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Blank one rectangle of an image, with a probability per image: 2 to 33 % of its area, set to the mean colour.

    Source: Zhong et al. 2017, "Random Erasing Data Augmentation", arXiv 1708.04896; areas as in timm.
    """
    b, _, height, width = images.shape
    chance, area, aspect, top, left = torch.rand(5, b, 1, generator=generator)
    area, aspect = 0.02 + 0.31 * area, torch.exp((2 * aspect - 1) * 1.2)  # sides relate as 0.3 .. 3.3
    tall, wide = (area * aspect).sqrt().clamp(max=1) * height, (area / aspect).sqrt().clamp(max=1) * width
    rows, columns = torch.arange(height) - top * (height - tall), torch.arange(width) - left * (width - wide)
    in_rows, in_columns = (rows >= 0) & (rows < tall), (columns >= 0) & (columns < wide)
    erased = (in_rows[:, :, None] & in_columns[:, None, :])[:, None] & (chance < probability)[:, :, None, None]
    return images.masked_fill(erased, 0.0)


def normalize(images: UInt8[Tensor, "b c h w"], preprocessing: Preprocessing) -> Float[Tensor, "b c height width"]:
    """Bring pixels to a model's size, mean and spread."""
    mean = torch.tensor(preprocessing.mean, device=images.device).view(-1, 1, 1) * 255
    std = torch.tensor(preprocessing.std, device=images.device).view(-1, 1, 1) * 255
    pixels = images.float()
    if pixels.shape[-2:] != preprocessing.image_size:
        mode = "bicubic" if preprocessing.interpolation == "bicubic" else "bilinear"
        pixels = F.interpolate(pixels, preprocessing.image_size, mode=mode, antialias=True).clamp_(0, 255)
    return pixels.sub_(mean).div_(std)
