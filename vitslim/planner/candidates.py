"""The best plans of every kind for one limit: compositions, choices for each step on every base, and improved ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vitslim.planner.config import PlannerConfig
from vitslim.planner.damage import DamageMeter
from vitslim.planner.rates import Rates, best_rates
from vitslim.planner.search import Candidate, Compositions, measured, of_all_kinds, promising
from vitslim.planner.steps import Changes, best_steps, improve
from vitslim.progress import ProgressCallback, silent

_PARTS = (0.33, 0.67, 1.0)
"""Of the saving that a limit asks for, what fewer tokens bring; choices for each step bring the rest."""


@dataclass(frozen=True)
class PlanSearch:
    """The search in one measure of price.

    Args:
        changes, rates: what single changes and fewer tokens do alone.
    """

    space: Compositions
    changes: Changes
    rates: Sequence[Rates]
    meter: DamageMeter
    config: PlannerConfig
    progress: ProgressCallback = silent

    def candidates(self, compositions: Sequence[Candidate], aim: float) -> tuple[list[Candidate], int]:
        """The best plans of every kind with their damage, and how many met the limit on paper.

        Args:
            compositions: all that meet it.
            aim: the limit, as a share of the dense model's price.
        """
        best = promising(compositions, self.space, self.meter, self.config.measured, self.progress)
        sharp = [self.space.sharpened(one, aim) for one in best]
        methods = measured(sharp, self.meter, "compositions", self.progress)
        solved = [one for base in self._bases(aim) if (one := self._solved(base, aim)) is not None]
        solved = sorted(solved, key=lambda one: one.expected)[: self.config.measured]
        steps = measured(solved, self.meter, "choices for each step", self.progress)
        first = of_all_kinds([*methods, *steps], self.config.improved)
        improved = {one.plan.model_dump_json(): self._improved(one, aim) for one in first}
        found = [improved.get(one.plan.model_dump_json(), one) for one in (*methods, *steps)]
        return found, len(compositions) + len(steps)

    def aimed(self, one: Candidate, aim: float) -> Candidate:
        """A candidate of the same kind for another limit; the same where there is none."""
        if one.kind != "steps" and not one.is_improved:
            new = self.space.sharpened(one, aim)
        else:
            base = self._base(one.entries, aim)
            new = (None if base is None else self._solved(base, aim)) or one
        new = replace(new, kind=one.kind, damage=self.meter(new.plan))
        return self._improved(new, aim) if one.is_improved else new

    def _improved(self, one: Candidate, aim: float) -> Candidate:
        return improve(one, self.changes, self.space.price, aim, self.meter, progress=self.progress)

    def _bases(self, aim: float) -> list[Candidate]:
        """What choices for each step are added to: the dense plan, and each way to have fewer tokens or channels."""
        fewer = [one for one in self.space.with_dense_blocks() if one.price > aim]
        entries = [({"method": rates.method, "rates": part},) for rates in self.rates for part in _PARTS]
        found = (self._base(one, aim) for one in [(), *entries])
        return [*fewer, *(one for one in found if one is not None)]

    def _base(self, entries: tuple[Mapping[str, Any], ...], aim: float) -> Candidate | None:
        """The plan of entries; of rates the one that brings their part of the saving."""
        if not entries or "rates" not in entries[0]:
            return self.space.apply(entries)
        (entry,) = entries
        rates = next(one for one in self.rates if one.method == entry["method"])
        solved = best_rates(self.space.dense, rates, self.space.price, 1.0 - entry["rates"] * (1.0 - aim))
        share = None if solved is None else self.space.price(solved[0])
        return None if solved is None or share is None else Candidate(solved[0], entries, share, "steps")

    def _solved(self, base: Candidate, aim: float) -> Candidate | None:
        """The best choices for each step on a base; the base itself where it needs none."""
        price = self.space.price(base.plan)
        if price is None:
            return None
        solved = (base.plan, 0.0)
        if price > aim:
            solved = best_steps(base.plan, self.changes, self.space.price, [aim])[0]
        share = None if solved is None else self.space.price(solved[0])
        if solved is None or share is None:
            return None
        alone = self.meter(base.plan).kl if base.entries else 0.0
        return replace(base, plan=solved[0], price=share, kind="steps", expected=solved[1] + alone)
