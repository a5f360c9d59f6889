"""Times of plans put together from measured probes; here the measured times come from a formula, so all is exact."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from vitslim.errors import CheckFailedError, ConfigError
from vitslim.methods import METHODS, planned
from vitslim.opening import open_model
from vitslim.planner import ProbeTimes, RuntimeConfig, StepTimes, probes_left, probes_once, times
from vitslim.planner.times import SHORT, probe_plans
from vitslim.plans import ModelPlan, cost, dense_plan, plan_json
from vitslim.plans.place import places
from vitslim.plans.shape import vit_shape
from vitslim.trunk import plan_of

DENSE = dense_plan(vit_shape(width=192, depth=6, heads=3, image_size=(128, 128), patch=16))


def seconds(plan: ModelPlan) -> float:
    """A runtime that takes time per call, patch, multiply-accumulate, weight, operator, and choice of tokens."""
    costs, steps = cost(plan), list(places(plan))
    operators = sum(at.step.attention.attends for at in steps) + sum(at.step.mlp.kind != "none" for at in steps)
    choosing = sum(at.step.tokens.kind == "prune" for at in steps)
    weights = sum(one.parameters for one in costs.steps)
    outside = 3e7 + 2e5 * plan.patches
    return outside + sum(one.macs for one in costs.steps) + 3 * weights + 1e6 * operators + 2e7 * choosing


def probes(**changed: float) -> ProbeTimes:
    plans = probe_plans(DENSE)
    shares = {name: seconds(plan) / seconds(DENSE) for name, plan in plans.items()} | {"dense": 1.0} | changed
    documents = {name: plan_json(plan) for name, plan in plans.items()}
    return ProbeTimes(dense_ms=2.0, shares=shares, plans=documents, skipped={}, environment={})


def after(*methods: tuple[str, dict[str, object]]) -> ModelPlan:
    plan = DENSE
    for name, options in methods:
        plan = planned(METHODS.get(name), METHODS.get(name).config(**options), plan)
    return plan


@pytest.mark.parametrize(
    "plan",
    [
        DENSE,
        after(("depth", {"keep": 4})),
        after(("mlp", {"keep": 0.375})),
        after(("heads", {"keep": 0.67})),
        after(("resolution", {"keep": 0.56})),
        after(("mlp", {"keep": 0.25}), ("resolution", {"keep": 0.4})),
        after(("heads", {"keep": 0.34}), ("resolution", {"keep": 0.4})),
        after(("depth", {"keep": 3}), ("resolution", {"keep": 0.4})),
        after(("width", {"keep": 0.625}), ("mlp", {"keep": 0.5})),
        after(("resolution", {"keep": 0.5}), ("prune", {"keep": 0.5, "layers": (1, 3)})),
        after(("depth", {"keep": 5}), ("mlp", {"keep": 0.5, "layers": (1, 4)}), ("resolution", {"keep": 0.7})),
        after(("depth", {"keep": 4}), ("prune", {"keep": 0.7, "layers": (1,)})),
    ],
)
def test_what_is_put_together_is_what_would_be_measured(plan: ModelPlan) -> None:
    found = StepTimes(DENSE, probes()).predict(plan)
    # Between the measured sizes the square of the tokens is drawn as a line.
    assert found == pytest.approx(seconds(plan) / seconds(DENSE), rel=0.03)


def test_choices_that_no_probe_has_seen_have_no_price() -> None:
    plan = after(("depth", {"layers": (2,), "stand_in": True}))
    assert StepTimes(DENSE, probes()).predict(plan) is None


def test_without_the_probes_that_tell_steps_apart_nothing_is_predicted() -> None:
    measured = probes()
    shares = {name: share for name, share in measured.shares.items() if name != SHORT}
    lacking = measured.model_copy(update={"shares": shares, "skipped": {SHORT: "no such operator"}})
    with pytest.raises(CheckFailedError, match="two steps could not be timed: no such operator"):
        StepTimes(DENSE, lacking)


def test_two_blocks_are_too_few_to_tell_a_step_from_the_rest() -> None:
    shallow = dense_plan(vit_shape(width=192, depth=2, heads=3, image_size=(128, 128), patch=16))
    with pytest.raises(ConfigError, match="wanted three blocks or more"):
        StepTimes(shallow, probes())


def test_probes_that_were_timed_before_a_kill_are_not_timed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model("builtin", pretrained=False, img_size=32)
    timed: list[str] = []

    def measure(model: nn.Module, plans: Mapping[str, ModelPlan], config: RuntimeConfig) -> Any:
        if len(timed) == 12:
            raise KeyboardInterrupt
        timed.extend(plans)
        return dict.fromkeys(plans, 0.5), {}, 2.0 + len(timed)

    monkeypatch.setattr(times, "measure_plans", measure)
    dense, config = plan_of(model), RuntimeConfig()
    every = probes_left(dense, config, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        probes_once(model, config, tmp_path)
    assert probes_left(dense, config, tmp_path) == every - 12
    before = list(timed)
    timed.clear()
    with pytest.raises(KeyboardInterrupt):
        probes_once(model, config, tmp_path)
    assert not set(timed) & set(before)
    timed.clear()
    found = probes_once(model, config, tmp_path)
    assert set(found.shares) == {"dense", *found.plans}
    assert len(found.dense_each_ms) == -(-every // 6)
    assert probes_left(dense, config, tmp_path) == 0
