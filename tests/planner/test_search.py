"""Which compositions are tried, and which of them are measured."""

from typing import Any

import pytest
import torch
from torch import nn

from vitslim.errors import ConfigError
from vitslim.methods import METHODS, planned
from vitslim.planner import Budget, DamageMeter, best_of_each_kind, compositions, rank
from vitslim.plans import ModelPlan, check, cost
from vitslim.trunk import build, plan_of
from vitslim.validation import validated


@pytest.fixture(scope="module")
def model() -> nn.Module:
    import timm

    torch.manual_seed(0)
    size: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", num_classes=10, **size).eval()


@pytest.fixture(scope="module")
def meter(model: nn.Module) -> DamageMeter:
    torch.manual_seed(1)
    batches = [torch.randn(8, 3, 32, 32) for _ in range(2)]
    return DamageMeter(model, batches[:1], batches[1:], [torch.arange(8)])


def macs_of(model: nn.Module) -> Any:
    whole = cost(plan_of(model)).macs
    return lambda plan: cost(plan).macs / whole


def test_every_composition_meets_the_limit_and_is_the_mildest_of_its_last_method(model: nn.Module) -> None:
    dense, price = plan_of(model), macs_of(model)
    found = compositions(dense, 0.6, price, None)
    assert all(price(one.plan) <= 0.6 and not check(one.plan) for one in found)
    kinds = {one.methods for one in found}
    assert {("depth",), ("mlp",), ("resolution",), ("depth", "mlp")} <= kinds
    (narrow,) = [one for one in found if one.methods == ("mlp",)]
    method = METHODS.get("mlp")
    milder = [one["keep"] for one in method.strengths(dense) if one["keep"] > narrow.entries[0]["keep"]]
    assert milder
    assert all(price(planned(method, method.config(keep=keep), dense)) > 0.6 for keep in milder)


def test_a_price_that_is_not_known_keeps_a_plan_out(model: nn.Module) -> None:
    price = macs_of(model)

    def without_narrow_mlps(plan: ModelPlan) -> float | None:
        return None if any(step.mlp.kind == "narrow" for step in plan.steps) else price(plan)

    found = compositions(plan_of(model), 0.6, without_narrow_mlps, None)
    assert found
    assert not any("mlp" in one.methods for one in found)


def test_the_best_of_every_kind_are_measured_and_sorted(model: nn.Module, meter: DamageMeter) -> None:
    dense = plan_of(model)
    found = compositions(dense, 0.6, macs_of(model), None)
    ranked = rank(found, dense, meter, None, measured=1)
    assert {one.composition.methods for one in ranked} == {one.methods for one in found}
    assert [one.damage.kl for one in ranked] == sorted(one.damage.kl for one in ranked)
    first = best_of_each_kind(ranked, 3)
    assert len({one.composition.methods for one in first}) == 3


def test_the_damage_of_the_dense_plan_is_none(model: nn.Module, meter: DamageMeter) -> None:
    found = meter(plan_of(model))
    assert (found.kl, found.agreement) == (pytest.approx(0.0, abs=1e-9), 1.0)
    assert found.loss is not None


def test_damage_is_measured_behind_the_closed_form_start(model: nn.Module, meter: DamageMeter) -> None:
    plan = next(one.plan for one in compositions(plan_of(model), 0.6, macs_of(model), None) if one.methods == ("mlp",))
    assert meter(plan).kl < meter.of(build(plan, model).eval()).kl


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
