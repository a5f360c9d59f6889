"""A choice for each step: the best sum of single damages, and what is improved of the joint one."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from torch import nn

from vitslim.planner import Candidate, Changes, Compositions, DamageMeter, best_steps, improve, measure_changes
from vitslim.planner.reasons import reasons
from vitslim.plans import ModelPlan, check
from vitslim.trunk import plan_of


@pytest.fixture(scope="module")
def changes(model: nn.Module, meter: DamageMeter, price: Any) -> Changes:
    return measure_changes(plan_of(model), price, meter)


def test_every_change_that_saves_something_is_measured_alone(
    model: nn.Module, meter: DamageMeter, changes: Changes
) -> None:
    dense = plan_of(model)
    assert set(changes.dropped) == {0, 1, 2, 3}
    kinds = {choice.kind for _, choice in changes.attention}, {choice.kind for _, choice in changes.mlp}
    assert {"none", "narrow", "reuse"} <= kinds[0]
    assert {"none", "narrow"} <= kinds[1]
    (attention,) = [choice for block, choice in changes.attention if block == 2 and choice.kind == "none"]
    (mlp,) = [choice for block, choice in changes.mlp if block == 2 and choice.kind == "none"]
    step = dense.steps[2].but(attention=attention, mlp=mlp)
    parts = [dense.steps[2].but(attention=attention), dense.steps[2].but(mlp=mlp)]
    assert changes.alone(2, step) == pytest.approx(sum(meter(dense.with_steps({2: one})).kl for one in parts))
    assert changes.alone(2, dense.steps[2]) == 0.0


@pytest.mark.parametrize("limit", [0.85, 0.6, 0.4])
def test_the_best_sum_is_that_of_all_combinations(model: nn.Module, changes: Changes, price: Any, limit: float) -> None:
    dense = plan_of(model)
    # Few enough changes to try them all.
    few = replace(
        changes,
        attention={key: kl for key, kl in changes.attention.items() if key[1].kind in ("dense", "none")},
        mlp={key: kl for key, kl in changes.mlp.items() if key[1].kind in ("dense", "none")},
    )
    (found,) = best_steps(dense, few, price, [limit])
    assert found is not None
    plan, total = found
    assert not check(plan)
    assert price(plan) <= limit
    sums = {
        sum(few.alone(index, step) or 0.0 for index, step in enumerate(steps)): steps
        for steps in product(*(list(few.steps(step)) for step in dense.steps))
        if allowed(dense, steps, price, limit)
    }
    # Savings are rounded down to a thousandth part, so that the best may be missed by a hair.
    nearly = {
        sum(few.alone(index, step) or 0.0 for index, step in enumerate(steps))
        for steps in product(*(list(few.steps(step)) for step in dense.steps))
        if allowed(dense, steps, price, limit - 0.005)
    }
    assert min(sums) - 1e-9 <= total <= min(nearly) + 1e-9


def allowed(dense: ModelPlan, steps: tuple[Any, ...], price: Any, limit: float) -> bool:
    kept = tuple(step for step in steps if step is not None)
    plan = dense.model_copy(update={"steps": kept})
    return bool(kept) and not check(plan) and price(plan) <= limit


def test_milder_limits_cost_less_and_none_is_out_of_reach_in_silence(
    model: nn.Module, changes: Changes, price: Any
) -> None:
    found = best_steps(plan_of(model), changes, price, [0.9, 0.7, 0.5, 0.001])
    sums = [one[1] for one in found if one is not None]
    assert sums == sorted(sums)
    assert [one is None for one in found] == [False, False, False, True]


def test_rules_on_tokens_are_kept(model: nn.Module, changes: Changes, price: Any) -> None:
    space = Compositions(plan_of(model), price, None)
    bases = space.with_dense_blocks()
    assert {"prune", "merge", "evo_vit", "resolution", "width"} == {one.methods[0] for one in bases}
    (pruned, *_) = [one for one in bases if one.methods == ("prune",)]
    (found,) = best_steps(pruned.plan, changes, price, [0.5])
    assert found is not None
    rules = [step.tokens for step in pruned.plan.steps if step.tokens.kind != "all"]
    assert [step.tokens for step in found[0].steps if step.tokens.kind != "all"] == rules
    assert price(found[0]) <= 0.5


def test_improvement_keeps_the_limit_and_lowers_the_joint_damage(
    model: nn.Module, changes: Changes, price: Any, meter: DamageMeter
) -> None:
    dense = plan_of(model)
    # The worst block to drop, where others would do less harm.
    worst = max(changes.dropped, key=lambda block: changes.dropped[block])
    plan = dense.model_copy(update={"steps": tuple(step for step in dense.steps if step.block != worst)})
    start = Candidate(plan, (), price(plan), "method", damage=meter(plan))
    better = improve(start, changes, price, price(plan), meter)
    assert better.kl < start.kl
    assert better.is_improved
    assert price(better.plan) <= price(plan)
    assert not check(better.plan)
    assert better.kl == meter(better.plan).kl


def test_each_block_has_its_reason(model: nn.Module, changes: Changes, price: Any) -> None:
    dense = plan_of(model)
    plan = dense.model_copy(update={"steps": (dense.steps[0], dense.steps[1].but(mlp=_none(changes)), dense.steps[3])})
    found = reasons(plan, dense, changes, price)
    assert [one.choice for one in found] == ["dense", "none", "dropped", "dense"]
    assert found[2].cost == 0.0
    assert found[2].alone == changes.dropped[2]
    assert sum(one.cost for one in found) == pytest.approx(price(plan), abs=0.1)
    assert found[1].cost < found[0].cost
    assert all(one.cheapest_other is not None for one in found)


def _none(changes: Changes) -> Any:
    return next(choice for block, choice in changes.mlp if block == 1 and choice.kind == "none")
