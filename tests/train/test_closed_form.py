"""Closed-form starts: what is solved for, from the front, on what the student itself computes."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.plans.random_plans import random_plan
from tests.variants import dense, images_for
from vitslim.methods import convert
from vitslim.models import trace
from vitslim.train.closed_form import NormalEquations, fit_in_closed_form_
from vitslim.train.warm_start import dense_at_size_of
from vitslim.trunk import Regression, at_plan_size, build, trunk_of

FAMILIES = ["vit_layer_scale", "vit_post_norm", "vit_inner_norms", "eva_mixed_rotary", "eva_eva02", "eva_packed_swiglu"]
FAMILIES += ["eva_grouped_queries", "beit_both_biases"]


def batches(model: nn.Module, count: int = 2, size: int = 32) -> list[Tensor]:
    return [images_for(model, batch=size, seed=seed) for seed in range(count)]


def distance(student: nn.Module, teacher: nn.Module, images: Sequence[Tensor]) -> float:
    with torch.no_grad():
        pairs = [(student.forward_features(one), teacher.forward_features(one)) for one in images]
    return sum(float((one - other).square().sum()) for one, other in pairs)


def test_the_solution_is_the_one_of_least_squares_whatever_the_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, noise = torch.randn(200, 6, generator=generator), torch.randn(200, 3, generator=generator)
    targets = inputs @ torch.randn(6, 3, generator=generator) + 5 + 0.1 * noise
    layer = nn.Linear(6, 3)
    sums = NormalEquations.of(Regression(layer, inputs, targets))
    for part in range(0, 200, 64):
        sums.add_(Regression(layer, inputs[part : part + 64], targets[part : part + 64]))
    with torch.no_grad():
        before, after = sums.solve_()
        left = (layer(inputs) - targets).square().sum() / (targets - targets.mean(0)).square().sum()
    ones = torch.cat([inputs, torch.ones(200, 1)], dim=1)
    best = torch.linalg.lstsq(ones, targets).solution
    # The ridge of 1e-3 shrinks by about as much.
    torch.testing.assert_close(layer.weight, best[:-1].T, atol=1e-2, rtol=1e-2)
    assert after == pytest.approx(float(left), rel=1e-3)
    assert after < 0.01 < before


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("depth", {"layers": (1, 2), "stand_in": True}),
        ("mlp", {"keep": 0.5}),
        ("mlp", {"layers": (1,), "form": "linear"}),
        ("heads", {"keep": 0.67}),
    ],
)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_starts_nearer_to_the_teacher(name: str, method: str, options: dict[str, Any]) -> None:
    teacher = dense(name)
    student = convert(teacher, method, **options).eval()
    images = batches(teacher)
    before = distance(student, teacher, images)
    errors = fit_in_closed_form_(student, teacher, images)
    assert errors
    assert distance(student, teacher, images) < before


def test_neurons_that_say_nothing_new_can_go() -> None:
    teacher = copy.deepcopy(dense("vit_plain"))
    with torch.no_grad():
        for block in teacher.blocks:
            # The second half repeats the first; its outputs are of their own.
            block.mlp.fc1.weight[96:] = block.mlp.fc1.weight[:96]
            block.mlp.fc1.bias[96:] = block.mlp.fc1.bias[:96]
    student = convert(teacher, "mlp", keep=0.5).eval()
    images = batches(teacher)
    for step in trunk_of(student).all_steps():
        # One of each pair, whichever weighs more: any choice of the data is as good only where pairs are kept apart.
        step.mlp.choose_ = lambda sums, batch: batch.bound.adapter.take_neurons_(  # type: ignore[method-assign]
            batch.bound.block, batch.dense_bound.block, torch.arange(96)
        )
    errors = fit_in_closed_form_(student, teacher, images)
    # What the ridge of 1e-3 leaves.
    assert max(after for _, after in errors.values()) < 1e-2


def test_the_choice_without_data_leaves_no_trace() -> None:
    teacher = dense("vit_layer_scale")
    students = [convert(teacher, method, keep=0.67).eval() for method in ("mlp", "mlp")]
    with torch.no_grad():
        for parameter in students[1].blocks[0].mlp.parameters():
            parameter.zero_()
    for student in students:
        fit_in_closed_form_(student, teacher, batches(teacher))
    states = [student.state_dict() for student in students]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_later_layers_read_what_the_fitted_front_computes() -> None:
    teacher = dense("vit_layer_scale")
    both = convert(teacher, "mlp", layers=(0, 3), keep=0.25).eval()
    late = convert(teacher, "mlp", layers=(3,), keep=0.25).eval()
    images = batches(teacher)
    for student in (both, late):
        fit_in_closed_form_(student, teacher, images)
    assert not torch.equal(both.blocks[3].mlp.fc2.weight, late.blocks[3].mlp.fc2.weight)


def test_a_skip_function_starts_at_its_best_last_layer() -> None:
    teacher = dense("vit_layer_scale")
    student = convert(teacher, "skipat", layers=(1, 2), prefix="linear").eval()
    images, trunk = batches(teacher), trunk_of(student)
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    first = distance(student, teacher, images)
    errors = fit_in_closed_form_(student, teacher, images)
    assert set(errors) == {1, 2}
    assert all(after < start for start, after in errors.values())
    assert distance(student, teacher, images) < first
    changed = {name for name, value in trunk.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(".reduce." in name or ".prefix_map." in name for name in changed)


def test_sorted_tokens_are_fitted_to_what_the_dense_blocks_make_of_them() -> None:
    teacher = dense("vit_layer_scale")
    student = convert(convert(teacher, "evo_vit", stages=(1,)), "mlp", layers=(2,), keep=0.25).eval()
    images = batches(teacher)
    before = distance(student, convert(teacher, "evo_vit", stages=(1,)).eval(), images)
    assert set(fit_in_closed_form_(student, teacher, images)) == {2}
    assert distance(student, convert(teacher, "evo_vit", stages=(1,)).eval(), images) < before


def test_a_conversion_without_anything_to_solve_for_is_left_as_it_is() -> None:
    teacher = dense("vit_layer_scale")
    student = convert(teacher, "skipat", layers=(2,), identity=True).eval()
    assert fit_in_closed_form_(student, teacher, batches(teacher, 1)) == {}
    assert trace(teacher, images_for(teacher)).logits.isfinite().all()


def test_reuse_without_a_map_has_nothing_to_fit_where_some_tokens_are_inactive() -> None:
    teacher = dense("vit_plain")
    student = convert(convert(teacher, "skipat", layers=(3,), identity=True), "evo_vit").eval()
    assert fit_in_closed_form_(student, teacher, batches(teacher)) == {}


@settings(max_examples=40)
@given(st.sampled_from(["vit_plain", "vit_no_class_token", "eva_eva02"]), st.integers(0, 2**32))
def test_every_plan_that_can_be_built_has_a_closed_form_start(name: str, seed: int) -> None:
    teacher = dense(name)
    student = build(random_plan(name, seed), teacher).eval()
    images = [at_plan_size(student, one) for one in batches(teacher, count=1, size=4)]
    fit_in_closed_form_(student, dense_at_size_of(student, teacher), images)
    assert all(parameter.isfinite().all() for parameter in student.parameters())
