"""The kinds of plain data that rooms hand to each other: what was asked for, what came out, how many."""

from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, field_validator

from vitslim.validation import refuse_misplaced_boolean


class Config(BaseModel):
    """Options of one stage: frozen, and an unknown field is an error rather than a silent default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _booleans_are_no_numbers(cls, value: Any, info: Any) -> Any:
        return refuse_misplaced_boolean(value, cls.model_fields[str(info.field_name)].annotation)


class Result(BaseModel):
    """What one stage found: frozen, and written as it stands to the output folder as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


if TYPE_CHECKING:
    Count = int
else:
    Count = int | torch.SymInt
"""A number of rows, columns or tokens: an integer, or a symbol while a model of free image size is traced."""
