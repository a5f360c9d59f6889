"""The kinds of plain data that rooms hand to each other: what was asked for, what came out, how many."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import BaseModel, ConfigDict, field_validator


class Config(BaseModel):
    """Options of one stage: frozen; an unknown field is an error rather than a silent default, and so are numbers that
    none was meant by: NaN, infinity, ``true``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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
    Count = int | torch.SymInt
"""A number of rows, columns or tokens: an integer, or a symbol while a model of free image size is traced."""
