"""What a page says of a plan: one row per step, as the figure and the table need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitslim.methods import METHODS
from vitslim.plans import Place, cost, places, read_plan


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
    parameters: int
    macs: int

    @property
    def is_changed(self) -> bool:
        """Whether it differs at all from the dense block."""
        kinds = (self.attention.kind, self.tokens.kind, self.mlp.kind, self.weights.kind)
        return kinds != ("dense", "all", "dense", "own") or self.tokens.share < 1.0


@dataclass(frozen=True)
class PlanRows:
    """The steps of a model that was made of one with ``depth`` blocks.

    Args:
        channels: of the stream between the blocks, and of the dense model's.
    """

    depth: int
    rows: Sequence[PlanRow]
    channels: tuple[int, int]

    @property
    def channels_kept(self) -> float:
        """0..1."""
        return self.channels[0] / self.channels[1]


def plan_rows(document: Any) -> PlanRows | None:
    """The rows of plan.json; None for that of a dense model.

    Raises:
        ConfigError: the document is no plan.
    """
    if not document:
        return None
    METHODS.names()  # those of other packages bring their kinds of choices
    plan = read_plan(document, "plan.json")
    costs = cost(plan).steps
    homes = [step.home for step in plan.steps]
    rows = [
        PlanRow(
            at.index,
            at.step.block,
            *_parts(at),
            shares_with=homes.index(home) if homes.index(home) < at.index else None,
            parameters=costs[at.index].parameters,
            macs=costs[at.index].macs,
        )
        for at, home in zip(places(plan), homes, strict=True)
    ]
    return PlanRows(plan.model.depth, rows, (plan.channels, plan.model.width))


def _parts(at: Place) -> tuple[Part, Part, Part, Part]:
    step, dense = at.step, at.dense_block
    active = min(at.in_attention.patches, at.in_mlp.patches)
    return (
        Part(step.attention.kind, step.attention.describe(), at.block.heads / dense.heads),
        Part(step.tokens.kind, f"{step.tokens.describe()} ({active})", active / at.plan.patches),
        Part(step.mlp.kind, step.mlp.describe(), at.block.hidden / dense.hidden),
        Part(step.weights.kind, step.weights.describe()),
    )
