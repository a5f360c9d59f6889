"""The kinds of plain data that packages hand to each other: what was asked for, what came out, how many."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, SupportsIndex, cast

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator


class Config(BaseModel):
    """Options of one stage: frozen; an unknown field is an error rather than a silent default, and so are numbers that
    none was meant by: NaN, infinity, ``true``.

    The string under a field is its description, which ``vitslim list methods NAME`` shows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @field_validator("*", mode="wrap")
    @classmethod
    def _truth_is_no_number(cls, value: Any, handler: Callable[[Any], Any]) -> Any:
        # Python's True is an int of value 1, and pydantic takes it for one.
        result = handler(value)
        if _count_truths(value) > _count_truths(result):
            raise ValueError("true and false are no numbers; give a number")
        return result


class Result(BaseModel):
    """What one stage found: frozen, and written as it stands to the output folder as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _count_truths(value: Any) -> int:
    if isinstance(value, list | tuple):
        return sum(map(_count_truths, cast("list[Any]", value)))
    return int(isinstance(value, bool))


if TYPE_CHECKING:
    Count = int
else:
    Count = SupportsIndex
"""A number of rows, columns or tokens: an integer, or a symbol (``torch.SymInt``) while a model of free image size is
traced."""


_LONGEST_PATH, _LONGEST_NAME = 4095, 255  # bytes, on every system that torch runs on


def _possible(path: str | Path) -> str | Path:
    try:
        name = os.fsencode(path)
    except UnicodeEncodeError:
        raise ValueError("no file can be called so") from None
    if b"\0" in name or len(name) > _LONGEST_PATH or max(map(len, name.split(b"/"))) > _LONGEST_NAME:
        raise ValueError("no file can be called so")
    return path


AnyPath = Annotated[str | Path, AfterValidator(_possible)]
"""Where a file or folder lies, or is to lie."""


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("true and false are no numbers; give a number")
    return value


AtLeastOne = Annotated[int, BeforeValidator(_number), Field(ge=1, le=2**31 - 1)]
"""A number of images, batches, threads."""

NoneOrMore = Annotated[int, BeforeValidator(_number), Field(ge=0, le=2**31 - 1)]

Seed = Annotated[int, BeforeValidator(_number), Field(ge=0, le=2**63 - 1)]


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
