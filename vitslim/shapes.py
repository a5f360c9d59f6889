"""The kinds of plain data that rooms hand to each other: what was asked for, what came out, how many."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Config(BaseModel):
    """Options of one stage: frozen, and an unknown field is an error rather than a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Result(BaseModel):
    """What one stage found: frozen, and written as it stands to the output folder as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


if TYPE_CHECKING:
    Count = int
else:
    Count = int | torch.SymInt
"""A number of rows, columns or tokens: an integer, or a symbol while a model of free image size is traced."""


def _alone(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else value


ChannelMeans = Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1), BeforeValidator(_alone)]
"""Mean of each channel, of pixels in 0..1; a single number stands for all channels."""

ChannelDeviations = Annotated[
    tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1), BeforeValidator(_alone)
]
"""Standard deviation of each channel, of pixels in 0..1; a single number stands for all channels."""

CropShare = Annotated[float, Field(gt=0, le=1)]
"""The share of a side that the centre crop keeps."""

Interpolation = Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
"""How images are resized, by the names that timm's transforms take."""
