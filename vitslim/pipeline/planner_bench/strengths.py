"""At which strength a rival is just fast enough."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vitslim.pipeline.planning import TOLERANCE
from vitslim.planner import Price
from vitslim.plans import ModelPlan

Measure = Callable[[Sequence[ModelPlan]], Sequence[float | None]]
"""Times of plans as shares of the dense model's; ``None`` for those that do not run."""


class Strengths:
    """Times of one rival at its strengths, measured from the one on that is expected to be just fast enough."""

    def __init__(self, plans: Sequence[ModelPlan], predict: Price, measure: Measure) -> None:
        self.plans, self._measure = plans, measure
        self.expected = [predict(plan) for plan in plans]
        self.known: dict[int, float] = {}

    def mildest(self, limit: float) -> int | None:
        """The index of the mildest that is measured to be within the limit, the milder one beside it being not."""
        fits = [index for index, share in enumerate(self.expected) if share is None or share <= limit]
        index = fits[0] if fits else len(self.plans) - 1
        while 0 <= index < len(self.plans) and not self._is_within(index, limit):
            index += 1
        while 0 < index < len(self.plans) and self._is_within(index - 1, limit):
            index -= 1
        return index if 0 <= index < len(self.plans) else None

    def _is_within(self, index: int, limit: float) -> bool:
        if index not in self.known:
            share = self._measure([self.plans[index]])[0]
            self.known[index] = float("inf") if share is None else share
        return self.known[index] <= limit * TOLERANCE
