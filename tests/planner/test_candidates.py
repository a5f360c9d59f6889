"""Plans of every kind for one limit, and the same plans aimed at another."""

from dataclasses import replace
from typing import Any

import pytest
from torch import nn

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
    improved = replace(start, kind="improved", damage=search.meter(start.plan))
    faster = search.aimed(improved, 0.55)
    assert faster.price <= 0.55 < improved.price
    assert faster.entries == improved.entries
    assert {step.block for step in faster.plan.steps} <= {step.block for step in start.plan.steps}
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
