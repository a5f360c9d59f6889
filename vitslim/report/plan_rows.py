"""What a page says of a plan: one row per step, as the figure and the table need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field, PositiveInt, TypeAdapter

from vitslim.trunk.axes import Attention

_MOST_BLOCKS = 1024


@dataclass(frozen=True)
class Part:
    """One choice of a step.

    Args:
        kind: the name of the choice; ``dense``, ``all`` and ``own`` leave the block as it was.
        words: the choice with its figures, for people.
        share: how much of the dense block's is left, 0..1: of the heads, of the MLP's width, of the patches.
    """

    kind: str
    words: str
    share: float = 1.0


@dataclass(frozen=True)
class PlanRow:
    """One step; ``shares_with`` is the earlier step whose weights it applies again."""

    step: int
    block: int
    attention: Part
    tokens: Part
    mlp: Part
    weights: Part
    shares_with: int | None
    parameters: int | None = None
    macs: int | None = None

    @property
    def is_changed(self) -> bool:
        """Whether it differs at all from the dense block."""
        kinds = (self.attention.kind, self.tokens.kind, self.mlp.kind, self.weights.kind)
        return kinds != ("dense", "all", "dense", "own")


@dataclass(frozen=True)
class PlanRows:
    """The steps of a model that was made of one with ``depth`` blocks."""

    depth: int
    rows: Sequence[PlanRow]


class _Step(BaseModel):
    """An entry of plan.json."""

    step: int
    block: Annotated[int, Field(ge=0, lt=_MOST_BLOCKS)]
    mixing: str
    tokens: str
    weights: str
    parameters: int | None = None
    attention: Attention
    kept: int
    of: PositiveInt
    shares_with: int | None
    converted: bool


def plan_rows(document: Any) -> PlanRows | None:
    """The rows of plan.json; None for that of a dense model.

    Raises:
        ValidationError: the document is no plan.
    """
    rows = [_row(step) for step in TypeAdapter(list[_Step]).validate_python(document)]
    return PlanRows(1 + max(row.block for row in rows), rows) if rows else None


def _row(step: _Step) -> PlanRow:
    is_whole = step.kept >= step.of
    return PlanRow(
        step.step,
        step.block,
        attention=Part(step.attention, step.mixing),
        tokens=Part("all" if is_whole else "evolve", step.tokens, 1.0 if is_whole else step.kept / step.of),
        mlp=Part("dense", "dense"),
        weights=Part("own" if step.shares_with is None and step.weights == "own" else "shared", step.weights),
        shares_with=step.shares_with,
        parameters=step.parameters,
    )
