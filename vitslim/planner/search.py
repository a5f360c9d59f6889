"""Which plans meet a limit, and which of them do the least damage before training.

Every composition of methods is tried, each method at its strengths, up to the first that meets the limit. The damage of
a composition is first taken as the sum of what its methods do alone, which ranks the plans of each kind; the best of
every kind are then measured as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitslim.errors import VitslimError
from vitslim.methods import METHODS, Evidence, planned, read_method
from vitslim.planner.damage import Damage, DamageMeter
from vitslim.plans import ModelPlan
from vitslim.progress import Progress, ProgressCallback, silent
from vitslim.trunk import Conversion

Price = Callable[[ModelPlan], float | None]
"""What a plan costs in the measure of the budget; ``None`` where that is not known."""

MOST_METHODS = 3
"""In one composition."""


@dataclass(frozen=True)
class Composition:
    """Methods one after the other, and the plan they lead to.

    Args:
        entries: each a method's name and options, as recipes have them.
        price: of the plan, in the measure of the budget.
    """

    plan: ModelPlan
    entries: tuple[Mapping[str, Any], ...]
    price: float

    @property
    def methods(self) -> tuple[str, ...]:
        """The kind of plan that it is."""
        return tuple(str(entry["method"]) for entry in self.entries)


@dataclass
class Candidate:
    """A composition with what is known of its damage."""

    composition: Composition
    damage: Damage
    expected: float = field(default=0.0)
    """The sum of the divergences that its methods cause alone."""


def compositions(dense: ModelPlan, limit: float, price: Price, evidence: Evidence | None) -> list[Composition]:
    """Every composition that is the mildest of its last method to meet a limit.

    Methods that choose tokens come last, for others ask to stand before them.
    """
    order = sorted(METHODS.names(), key=lambda name: _selects_tokens(name, dense, evidence))
    start = Composition(dense, (), price(dense) or 0.0)
    return list(_extended(start, order, limit, price, evidence, ()))


def _extended(
    before: Composition,
    names: Sequence[str],
    limit: float,
    price: Price,
    evidence: Evidence | None,
    history: tuple[Conversion, ...],
) -> Iterator[Composition]:
    for index, name in enumerate(names):
        for options in METHODS.get(name).strengths(before.plan):
            after = _applied(before, name, options, price, evidence, history)
            if after is None or after.price >= before.price:
                continue
            if after.price <= limit:
                yield after
                break
            if len(after.entries) < MOST_METHODS:
                done = (*history, Conversion(name, dict(options)))
                yield from _extended(after, names[index + 1 :], limit, price, evidence, done)


def _applied(
    before: Composition,
    name: str,
    options: Mapping[str, Any],
    price: Price,
    evidence: Evidence | None,
    history: tuple[Conversion, ...],
) -> Composition | None:
    try:
        plan = planned(*read_method(name, options), before.plan, evidence, history)
    except VitslimError:
        return None
    cost = price(plan)
    return None if cost is None else Composition(plan, (*before.entries, {"method": name, **options}), cost)


def rank(
    found: Sequence[Composition],
    dense: ModelPlan,
    meter: DamageMeter,
    evidence: Evidence | None,
    *,
    measured: int = 40,
    progress: ProgressCallback = silent,
) -> list[Candidate]:
    """Measure the damage of the most promising compositions of every kind.

    Args:
        measured: how many, about; every kind has at least its best one.

    Returns:
        The measured ones, least divergence first.
    """
    alone: dict[str, float] = {}
    singles = {_key(entry): entry for one in found for entry in one.entries}
    for done, (key, entry) in enumerate(singles.items()):
        single = _applied(
            Composition(dense, (), 1.0), str(entry["method"]), _options(entry), lambda _: 0.0, evidence, ()
        )
        alone[key] = float("inf") if single is None else meter(single.plan).kl
        progress(Progress("damage of single methods", done + 1, len(singles), "plans"))
    expected = {index: sum(alone[_key(entry)] for entry in one.entries) for index, one in enumerate(found)}
    order = sorted(expected, key=lambda index: expected[index])
    best_of_kind = {found[index].methods: index for index in reversed(order)}
    chosen = dict.fromkeys([*best_of_kind.values(), *order])
    candidates: list[Candidate] = []
    wanted = max(measured, len(best_of_kind))
    for index in list(chosen)[:wanted]:
        candidates.append(Candidate(found[index], meter(found[index].plan), expected[index]))
        progress(Progress("damage of plans", len(candidates), min(wanted, len(chosen)), "plans"))
    return sorted(candidates, key=lambda one: one.damage.kl)


def best_of_each_kind(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The least damaging of every kind of plan, ``count`` at most, filled up with the next best of any kind."""
    first: dict[tuple[str, ...], Candidate] = {}
    for one in candidates:
        first.setdefault(one.composition.methods, one)
    rest = [one for one in candidates if one not in first.values()]
    return [*first.values(), *rest][:count]


def _selects_tokens(name: str, dense: ModelPlan, evidence: Evidence | None) -> bool:
    for options in METHODS.get(name).strengths(dense):
        after = _applied(Composition(dense, (), 1.0), name, options, lambda _: 0.0, evidence, ())
        if after is not None:
            return any(step.tokens.selects for step in after.plan.steps)
    return False


def _key(entry: Mapping[str, Any]) -> str:
    return repr(sorted(entry.items(), key=lambda item: item[0]))


def _options(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != "method"}
