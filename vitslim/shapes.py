"""The kinds of plain data that rooms hand to each other: what was asked for, what came out, how many."""

from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Options of one stage: frozen, and an unknown field is an error rather than a silent default.

    The string under a field is its description, which ``vitslim list methods NAME`` shows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Result(BaseModel):
    """What one stage found: frozen, and written as it stands to the output folder as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")


if TYPE_CHECKING:
    Count = int
else:
    Count = int | torch.SymInt
"""A number of rows, columns or tokens: an integer, or a symbol while a model of free image size is traced."""
