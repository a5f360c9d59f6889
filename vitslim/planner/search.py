"""Which plans meet a limit, and which of them do the least damage before training.

Two ways lead to candidates. Compositions: up to three methods one after the other, each at its strengths, the last one
just strong enough. Choices for each step: what every change of a single block does alone is measured, and an exact
search takes the cheapest sum of them that meets the limit, for the dense model and for every rule on tokens, image size
and width of the stream that a method offers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vitslim.errors import VitslimError
from vitslim.methods import METHODS, Evidence, planned, read_method
from vitslim.planner.damage import Damage, DamageMeter
from vitslim.plans import ModelPlan, StepPlan
from vitslim.progress import Progress, ProgressCallback, silent
from vitslim.trunk import Conversion

Price = Callable[[ModelPlan], float | None]
"""What a plan costs in the measure of the budget; ``None`` where that is not known."""

MOST_METHODS = 3
"""In one composition."""
_HALVINGS = 5
"""Of the interval between two strengths, until the last method is just strong enough."""


@dataclass(frozen=True)
class Candidate:
    """A plan that meets the limit on paper.

    Args:
        entries: the methods that lead to it, as recipes have them; for choices of each step those of its tokens, where
            ``rates`` is the part of the saving that a rate for each step brings.
        price: in the measure of the budget, as a share of the dense model's.
        kind: ``method``, ``methods`` or ``steps``.
        is_improved: whether steps were exchanged after that.
        expected: divergences that its methods or steps cause alone, summed, nats.
        damage: of the plan as it is; ``None`` before it is measured.
    """

    plan: ModelPlan
    entries: tuple[Mapping[str, Any], ...]
    price: float
    kind: str
    expected: float = 0.0
    damage: Damage | None = None
    is_improved: bool = False

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(str(entry["method"]) for entry in self.entries)

    @property
    def kl(self) -> float:
        """Of the measured damage, nats."""
        return float("inf") if self.damage is None else self.damage.kl

    @property
    def name(self) -> str:
        """For tables: ``depth keep=9 + mlp keep=0.5 widths=even``."""
        methods = " + ".join(describe_entry(entry) for entry in self.entries)
        if self.kind == "steps":
            methods = f"{methods} + each step" if methods else "each step"
        return f"{methods}, improved" if self.is_improved else methods


def describe_entry(entry: Mapping[str, Any]) -> str:
    """A method with its options."""
    options = (f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in entry.items() if v is not None)
    return " ".join(one.removeprefix("method=") for one in options)


@dataclass(frozen=True)
class Compositions:
    """Methods one after the other on a dense plan."""

    dense: ModelPlan
    price: Price
    evidence: Evidence | None

    def meeting(self, limit: float) -> list[Candidate]:
        """Every composition that is the mildest of its last method to meet a limit.

        Methods that choose tokens come last, for others ask to stand before them.
        """
        order = sorted(METHODS.names(), key=self._selects_tokens)
        start = Candidate(self.dense, (), self.price(self.dense) or 0.0, "method")
        return list(self._extended(start, order, limit))

    def apply(self, entries: Sequence[Mapping[str, Any]]) -> Candidate | None:
        """The plan that methods lead to; ``None`` where one refuses, or its price is not known."""
        found = Candidate(self.dense, (), 0.0, "method")
        for entry in entries:
            after = self._after(found, str(entry["method"]), _options(entry))
            if after is None:
                return None
            found = after
        return found

    def with_dense_blocks(self) -> list[Candidate]:
        """Every rule on tokens, image size and width of the stream that a method offers, at each strength."""
        found: list[Candidate] = []
        for name, method in METHODS.items():
            for options in method.strengths(self.dense):
                one = self.apply([{"method": name, **options}])
                if one is None:
                    continue
                plain = all(step == StepPlan(block=step.block, tokens=step.tokens) for step in one.plan.steps)
                if plain and one.plan.depth == self.dense.depth and one.plan != self.dense:
                    found.append(one)
        return found

    def sharpened(self, found: Candidate, limit: float) -> Candidate:
        """The same methods, the last one so strong that the limit is just met; the same where that is not possible."""
        *before, last = found.entries
        first = self.apply(before)
        strengths = [] if first is None else list(METHODS.get(str(last["method"])).strengths(first.plan))
        options = _options(last)
        same = [one for one in strengths if one.keys() == options.keys() and _apart(one, options) is not None]
        if first is None or not same:
            return found
        name = _apart(same[0], options)
        assert name is not None
        # Between the strongest that does not meet the limit and the mildest that does.
        tried = sorted({float(one[name]) for one in (*same, options)}, reverse=True)
        best, milder, stronger = found if found.price <= limit else None, 1.0, tried[-1]
        for value in tried:
            one = self._after(first, str(last["method"]), {**options, name: value})
            if one is not None and one.price <= limit:
                best, stronger = one, value
                break
            milder = value
        for _ in range(_HALVINGS if best is not None else 0):
            middle = (milder + stronger) / 2
            one = self._after(first, str(last["method"]), {**options, name: round(middle, 4)})
            if one is not None and one.price <= limit:
                best, stronger = one, middle
            else:
                milder = middle
        return found if best is None else replace(best, expected=found.expected)

    def _extended(self, before: Candidate, names: Sequence[str], limit: float) -> Iterator[Candidate]:
        for index, name in enumerate(names):
            for options in METHODS.get(name).strengths(before.plan):
                after = self._after(before, name, options)
                if after is None or after.price >= before.price:
                    continue
                if after.price <= limit:
                    yield after
                    break
                if len(after.entries) < MOST_METHODS:
                    yield from self._extended(after, names[index + 1 :], limit)

    def _after(self, before: Candidate, name: str, options: Mapping[str, Any]) -> Candidate | None:
        history = tuple(Conversion(str(entry["method"]), _options(entry)) for entry in before.entries)
        try:
            plan = planned(*read_method(name, options), before.plan, self.evidence, history)
        except VitslimError:
            return None
        cost = self.price(plan)
        entries = (*before.entries, {"method": name, **options})
        return None if cost is None else Candidate(plan, entries, cost, "method" if len(entries) == 1 else "methods")

    def _selects_tokens(self, name: str) -> bool:
        for options in METHODS.get(name).strengths(self.dense):
            after = self.apply([{"method": name, **options}])
            if after is not None:
                return any(step.tokens.selects for step in after.plan.steps)
        return False


def measured(
    candidates: Sequence[Candidate], meter: DamageMeter, what: str, progress: ProgressCallback = silent
) -> list[Candidate]:
    """The candidates with their damage, the least damaged first; ``what`` they are in the progress."""
    found: list[Candidate] = []
    for one in candidates:
        found.append(replace(one, damage=meter(one.plan)))
        progress(Progress(f"damage of {what}", len(found), len(candidates), "plans", {"kl": found[-1].kl}))
    return sorted(found, key=lambda one: one.kl)


def promising(
    found: Sequence[Candidate], space: Compositions, meter: DamageMeter, count: int, progress: ProgressCallback = silent
) -> list[Candidate]:
    """The best of every kind of composition, and the next best, by the sum of what their methods do alone.

    Args:
        count: how many, about; every kind has at least its best one.
    """
    entries = {_key(entry): entry for one in found for entry in one.entries}
    singles = {key: space.apply([entry]) for key, entry in entries.items()}
    alone: dict[str, float] = {}
    for key, single in singles.items():
        alone[key] = float("inf") if single is None else meter(single.plan).kl
        progress(Progress("damage of single methods", len(alone), len(singles), "plans"))
    expected = sorted(
        (replace(one, expected=sum(alone[_key(entry)] for entry in one.entries)) for one in found),
        key=lambda one: one.expected,
    )
    first: dict[tuple[str, ...], Candidate] = {}
    for one in expected:
        first.setdefault(one.methods, one)
    rest = [one for one in expected if one is not first[one.methods]]
    return [*first.values(), *rest][: max(count, len(first))]


def of_all_kinds(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The least damaged of single methods, of compositions and of choices for each step in turn.

    Of each, combinations of methods that are not there yet come first. No plan comes twice.
    """
    queues: dict[str, list[Candidate]] = {}
    seen: set[tuple[str, tuple[str, ...]]] = set()
    again: dict[str, list[Candidate]] = {}
    for one in sorted(candidates, key=lambda one: one.kl):
        key = (one.kind, one.methods)
        (again if key in seen else queues).setdefault(one.kind, []).append(one)
        seen.add(key)
    for kind, rest in again.items():
        queues[kind].extend(rest)
    found: dict[str, Candidate] = {}
    while len(found) < count and any(queues.values()):
        for queue in queues.values():
            while queue and queue[0].plan.model_dump_json() in found:
                queue.pop(0)
            if queue and len(found) < count:
                one = queue.pop(0)
                found[one.plan.model_dump_json()] = one
    return list(found.values())


def _apart(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The one option with a fraction as its value, by which alone two strengths may differ."""
    numbers = [name for name, value in other.items() if isinstance(value, float)]
    others = {name for name in other if name not in numbers}
    return numbers[0] if len(numbers) == 1 and all(one[name] == other[name] for name in others) else None


def _key(entry: Mapping[str, Any]) -> str:
    return repr(sorted(entry.items(), key=lambda item: item[0]))


def _options(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in entry.items() if name != "method"}
