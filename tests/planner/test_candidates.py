"""Plans of every kind for one limit, and the same plans aimed at another."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from vitslim.pipeline.planning.running import _Planning
from vitslim.planner import Candidate, Changes, Compositions, DamageMeter, PlannerConfig, PlanSearch
from vitslim.plans import NoMlp, check
from vitslim.trunk import plan_of


@pytest.fixture(scope="module")
def search(model: nn.Module, meter: DamageMeter, price: Any) -> PlanSearch:
    """Blocks may be dropped or lose their MLP."""
    plan = plan_of(model)
    attention = {(step.block, step.attention): 0.0 for step in plan.steps}
    without_mlp = {(step.block, NoMlp()): 0.1 * (step.block + 1) for step in plan.steps}
    mlp = {**without_mlp, **{(step.block, step.mlp): 0.0 for step in plan.steps}}
    changes = Changes(attention, mlp, {step.block: 1.0 for step in plan.steps})
    return PlanSearch(Compositions(plan, price, None), changes, [], meter, PlannerConfig(measured=3))


def test_an_improved_composition_is_aimed_again_from_its_methods(search: PlanSearch) -> None:
    start = search.space.apply([{"method": "depth", "keep": 3}])
    assert start is not None
    improved = replace(start, is_improved=True, damage=search.meter(start.plan))
    faster = search.aimed(improved, 0.55)
    assert faster.price <= 0.55 < improved.price
    assert (faster.entries, faster.kind) == (improved.entries, "method")
    assert faster.damage == search.meter(faster.plan)
    assert not check(faster.plan)


def test_a_single_method_is_aimed_again_by_its_strength(search: PlanSearch) -> None:
    start = search.space.apply([{"method": "mlp", "keep": 0.75, "widths": "even"}])
    assert start is not None
    faster = search.aimed(start, 0.7)
    assert faster.price <= 0.7 < start.price
    assert [entry["method"] for entry in faster.entries] == ["mlp"]


def test_what_nothing_reaches_stays_as_it_is(search: PlanSearch) -> None:
    dense = search.space.dense
    one = Candidate(dense, (), 1.0, "steps", damage=search.meter(dense))
    assert search.aimed(one, 0.001) == one


def test_what_takes_too_long_as_measured_is_solved_for_until_it_does_not(
    search: PlanSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[float]] = []

    def measured(_: Any, candidates: Sequence[Candidate]) -> list[float | None]:
        asked.append([one.price for one in candidates])
        return [one.price + 0.15 for one in candidates]

    monkeypatch.setattr(_Planning, "_measured_shares", measured)
    planning = object.__new__(_Planning)
    planning.config = search.config.model_copy(update={"trials": 1})
    start = search.space.apply([{"method": "mlp", "keep": 0.5, "widths": "even"}])
    assert start is not None
    start = replace(start, damage=search.meter(start.plan))
    limit = start.price + 0.03
    ((found, share),) = planning._trials(search, [start], limit, is_timed=True)
    assert len(asked) == 3
    assert share is not None
    assert share <= 1.02 * limit
    assert found.price + 0.15 == share
