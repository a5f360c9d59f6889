"""Whatever plan the checks accept can be built, and does what its data says; whatever they refuse has a reason."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.plans.random_plans import formed_plans, random_plans
from tests.variants import NOT_DESCRIBABLE, ONE_PER_ADAPTER, dense, images_for, lively_
from vitslim import checkpoint
from vitslim.bench import count_macs, count_parameters
from vitslim.errors import ConfigError
from vitslim.models import describe
from vitslim.plans import ModelPlan, check, cost, plan_json, read_plan
from vitslim.trunk import build, trunk_of

MODELS = [*ONE_PER_ADAPTER, "vit_four_registers", "eva_eva02", "eva_dinov3"]


def everywhere(count: int):
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def hold_promises(name: str, plan: ModelPlan, place: Path | None = None) -> None:
    """Build a plan and compare what comes out with what its data says."""
    errors = check(plan)
    if errors:
        with pytest.raises(ConfigError, match=r"step|block|image_size|readout"):
            build(plan, dense(name))
        return
    model = build(plan, dense(name), base=None if place is None else describe(dense(name))).eval()
    said = cost(plan)
    assert (said.macs, said.parameters) == (count_macs(model), count_parameters(model))
    assert read_plan(plan_json(plan)) == plan
    lively_(torch.nn.ParameterList(trunk_of(model).new_parameters().values()))
    images = images_for(model)
    with torch.no_grad():
        outputs = model(images)
    assert torch.isfinite(outputs).all()
    if place is not None:
        loaded = checkpoint.load(checkpoint.save(model, place, overwrite=True))
        with torch.no_grad():
            assert torch.equal(loaded(images), outputs)


@everywhere(60)
@given(name=st.sampled_from(MODELS), data=st.data())
def test_what_the_checks_accept_is_built_and_costs_what_the_plan_says(name: str, data: st.DataObject) -> None:
    hold_promises(name, data.draw(random_plans(formed_plans(name))))


@pytest.mark.slow
@everywhere(300)
@given(name=st.sampled_from([name for name in MODELS if name not in NOT_DESCRIBABLE]), data=st.data())
def test_three_hundred_plans_are_saved_and_loaded_alike(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    hold_promises(name, data.draw(random_plans(formed_plans(name))), tmp_path_factory.mktemp("plan"))


@everywhere(200)
@given(name=st.sampled_from(MODELS), data=st.data())
def test_a_refused_plan_is_never_built(name: str, data: st.DataObject) -> None:
    plan = data.draw(random_plans(formed_plans(name)))
    errors = check(plan)
    assume(errors)
    with pytest.raises(ConfigError) as caught:
        build(plan, dense(name))
    assert all(error in str(caught.value) for error in errors)
