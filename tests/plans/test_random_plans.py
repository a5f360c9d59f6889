"""Whatever plan the checks accept can be built, and does what its data says; whatever they refuse has a reason."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.plans.peak import peak_activations
from tests.plans.random_plans import random_plan
from tests.variants import NOT_DESCRIBABLE, ONE_PER_ADAPTER, dense, images_for, lively_
from vitslim import checkpoint
from vitslim.bench import count_macs, count_parameters
from vitslim.errors import ConfigError
from vitslim.methods import convert
from vitslim.plans import ModelPlan, check, cost, plan_json, read_plan
from vitslim.targets import verify
from vitslim.targets.onnx.export import export_onnx
from vitslim.trunk import build, trunk_of

MODELS = [*ONE_PER_ADAPTER, "vit_four_registers", "eva_eva02", "eva_dinov3"]
SAVABLE = [name for name in MODELS if name not in NOT_DESCRIBABLE]
SEEDS = st.integers(0, 2**32)


def everywhere(count: int):
    return settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def built(name: str, plan: ModelPlan) -> nn.Module:
    """The model of a plan, which computes something, costs what the plan says and can be read again."""
    model = convert(dense(name), plan=plan)
    said, (steps, overall) = cost(plan), peak_activations(model)
    assert (said.macs, said.parameters) == (count_macs(model), count_parameters(model))
    assert ([step.activations for step in said.steps], said.activations) == (steps, overall)
    assert read_plan(plan_json(plan)) == plan
    lively_(nn.ParameterList(trunk_of(model).new_parameters().values()))
    return model


@torch.no_grad()
def hold_in_files(name: str, plan: ModelPlan) -> None:
    """Save, load and export the model of a plan: all give what it gives."""
    model = built(name, plan)
    images = images_for(model, batch=3)
    outputs = model(images)
    assert torch.isfinite(outputs).all()
    with TemporaryDirectory() as folder:
        assert torch.equal(checkpoint.load(checkpoint.save(model, Path(folder) / "saved"))(images), outputs)
        export_onnx(model, Path(folder) / "model.onnx")
        assert verify(model, Path(folder) / "model.onnx", images).failures() == []


@everywhere(30)
@given(st.sampled_from(MODELS), SEEDS)
def test_what_the_checks_accept_is_built_and_costs_what_the_plan_says(name: str, seed: int) -> None:
    model = built(name, random_plan(name, seed))
    with torch.no_grad():
        assert torch.isfinite(model(images_for(model))).all()


@everywhere(3)
@given(st.sampled_from(SAVABLE), SEEDS)
def test_what_the_checks_accept_is_saved_and_exported_alike(name: str, seed: int) -> None:
    hold_in_files(name, random_plan(name, seed))


@pytest.mark.slow
@everywhere(300)
@given(st.sampled_from(SAVABLE), SEEDS)
def test_three_hundred_plans_are_saved_and_exported_alike(name: str, seed: int) -> None:
    hold_in_files(name, random_plan(name, seed))


@everywhere(200)
@given(st.sampled_from(MODELS), SEEDS)
def test_a_refused_plan_is_never_built(name: str, seed: int) -> None:
    plan = random_plan(name, seed, refused=True)
    for attempt in (lambda: read_plan(plan_json(plan)), lambda: build(plan, dense(name))):
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert all(error in str(caught.value) for error in check(plan))
