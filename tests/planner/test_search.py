"""Which compositions are tried, and which of them are measured."""

from typing import Any

import pytest
from torch import nn

from vitslim.errors import ConfigError
from vitslim.methods import METHODS, planned
from vitslim.planner import Budget, Candidate, Compositions, Damage, DamageMeter, measured, of_all_kinds, promising
from vitslim.plans import ModelPlan, check, dense_plan
from vitslim.trunk import plan_of
from vitslim.validation import validated


@pytest.fixture(scope="module")
def space(model: nn.Module, price: Any) -> Compositions:
    return Compositions(plan_of(model), price, None)


def test_every_composition_meets_the_limit_and_is_the_mildest_of_its_last_method(space: Compositions) -> None:
    found = space.meeting(0.6)
    assert all(space.price(one.plan) == one.price <= 0.6 and not check(one.plan) for one in found)
    kinds = {one.methods for one in found}
    assert {("depth",), ("mlp",), ("resolution",), ("depth", "mlp")} <= kinds
    (narrow,) = [one for one in found if one.methods == ("mlp",)]
    method = METHODS.get("mlp")
    milder = [one["keep"] for one in method.strengths(space.dense) if one["keep"] > narrow.entries[0]["keep"]]
    assert milder
    plans = [planned(method, method.config(keep=keep), space.dense) for keep in milder]
    assert all((space.price(plan) or 1.0) > 0.6 for plan in plans)


def test_a_price_that_is_not_known_keeps_a_plan_out(space: Compositions) -> None:
    def without_narrow_mlps(plan: ModelPlan) -> float | None:
        return None if any(step.mlp.kind == "narrow" for step in plan.steps) else space.price(plan)

    found = Compositions(space.dense, without_narrow_mlps, None).meeting(0.6)
    assert found
    assert not any("mlp" in one.methods for one in found)


def test_a_sharpened_composition_uses_up_the_limit(space: Compositions) -> None:
    (narrow,) = [one for one in space.meeting(0.6) if one.methods == ("mlp",)]
    sharp = space.sharpened(narrow, 0.6)
    assert narrow.price < sharp.price <= 0.6
    # Five halvings of the interval between two strengths, then whole groups of eight neurons.
    assert sharp.price > 0.58
    # Blocks come whole.
    (shallow,) = [one for one in space.meeting(0.6) if one.methods == ("depth",)]
    assert space.sharpened(shallow, 0.6) == shallow


def test_sharpening_goes_beyond_a_strength_that_is_too_mild(space: Compositions) -> None:
    mild = space.apply([{"method": "mlp", "keep": 0.75, "widths": "even"}])
    assert mild is not None
    assert mild.price > 0.7
    sharp = space.sharpened(mild, 0.7)
    assert sharp.price <= 0.7
    assert sharp.entries[0]["keep"] < 0.75


def test_the_most_promising_of_every_kind_are_kept(space: Compositions, meter: DamageMeter) -> None:
    found = space.meeting(0.6)
    kept = promising(found, space, meter, 1)
    assert {one.methods for one in kept} == {one.methods for one in found}
    (both,) = [one for one in kept if one.methods == ("depth", "mlp")]
    singles = [space.apply([entry]) for entry in both.entries]
    assert both.expected == pytest.approx(sum(meter(one.plan).kl for one in singles if one is not None))
    ranked = measured(kept[:3], meter, "plans")
    assert [one.kl for one in ranked] == sorted(meter(one.plan).kl for one in kept[:3])


def test_trials_are_of_all_kinds_and_none_comes_twice(space: Compositions) -> None:
    plans = [plan_with(space, kept) for kept in range(1, 5)]

    def candidate(plan: ModelPlan, kind: str, kl: float, *methods: str) -> Candidate:
        entries = tuple({"method": name} for name in methods)
        return Candidate(plan, entries, 0.5, kind, damage=Damage(kl=kl, agreement=1.0))

    first = candidate(plans[0], "method", 0.1, "depth")
    found = [
        first,
        candidate(plans[1], "method", 0.2, "depth"),
        candidate(plans[2], "methods", 0.9, "depth", "mlp"),
        candidate(plans[3], "steps", 0.5),
        candidate(plans[0], "steps", 0.05, "resolution"),
    ]
    chosen = of_all_kinds(found, 3)
    # The least damaging single method stands among the choices for each step already: the next one takes its place.
    assert [(one.kind, one.plan) for one in chosen] == list(zip(["steps", "method", "methods"], plans, strict=False))
    everything = of_all_kinds(found, 9)
    assert len(everything) == 4
    assert first not in everything


def plan_with(space: Compositions, blocks: int) -> ModelPlan:
    return space.dense.model_copy(update={"steps": space.dense.steps[:blocks]})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "wanted one budget .*none was given"),
        ({"speedup": 1.5, "macs": 2.0}, "given: speedup, macs"),
        ({"speedup": 0.9}, "speedup"),
        ({"latency_ms": -1}, "latency_ms"),
    ],
)
def test_budgets_that_contradict_each_other_are_refused(given: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validated(Budget, given)


def test_a_budget_that_the_dense_model_keeps_already_is_refused(model: nn.Module) -> None:
    dense = plan_of(model)
    with pytest.raises(ConfigError, match=r"has .* million parameters and is within the budget of 5 already"):
        Budget(params=5).limit(dense, None)
    assert Budget(latency_ms=1.0).limit(dense, 4.0) == 0.25


def test_weights_in_a_file_are_counted_in_its_precision(model: nn.Module) -> None:
    dense = dense_plan(plan_of(model).model)
    whole = Budget(file_mib=0.2).limit(dense, None, "fp32")
    assert Budget(file_mib=0.2).limit(dense, None, "fp16") == pytest.approx(2 * whole)
    assert Budget(file_mib=0.2).measure == "parameters"
