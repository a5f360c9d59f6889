"""Plans as data: reading, writing, refusing."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from tests.variants import ALL, BUILDERS, dense
from vitslim.bench import count_macs, count_parameters
from vitslim.errors import ConfigError
from vitslim.models.shape_of import model_shape
from vitslim.plans import (
    ModelPlan,
    NoAttention,
    NoMlp,
    StepPlan,
    changed_blocks,
    check,
    cost,
    dense_plan,
    plan_json,
    read_plan,
)
from vitslim.plans.shape import vit_shape
from vitslim.trunk import build, plan_of


@pytest.fixture
def plan() -> ModelPlan:
    return dense_plan(vit_shape(width=48, depth=4, heads=3, image_size=(32, 32), patch=8))


@pytest.mark.parametrize("name", ALL)
def test_the_cost_of_a_dense_plan_is_what_counting_the_model_gives(name: str) -> None:
    with torch.device("meta"):
        model = BUILDERS[name]()
    found = cost(plan_of(model))
    assert (found.macs, found.parameters) == (count_macs(model), count_parameters(model))
    built = build(plan_of(model), model)
    assert (found.macs, found.parameters) == (count_macs(built), count_parameters(built))


def test_the_shape_of_a_plain_vit_is_known_without_a_model() -> None:
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3, num_classes=10)
    assert model_shape(model) == vit_shape(width=48, depth=4, heads=3, image_size=(32, 32), patch=8)


def test_a_plan_survives_being_written_and_read(plan: ModelPlan) -> None:
    changed = plan.with_steps({1: StepPlan(block=1, attention=NoAttention(), mlp=NoMlp())})
    assert read_plan(plan_json(changed)) == changed
    assert changed_blocks(plan, changed) == [1]


def test_every_error_of_a_plan_file_is_named_at_once(plan: ModelPlan) -> None:
    document = plan_json(plan)
    document["steps"][0]["attention"] = {"kind": "dens"}
    document["steps"][1]["block"] = 7
    document["steps"][2]["mlp"] = {"kind": "dense", "hidden": 3}
    document["image_size"] = [30, 32]
    with pytest.raises(ConfigError) as caught:
        read_plan(document, "plan.json")
    message = str(caught.value)
    for part in (
        "plan.json",
        "'dens'",
        "did you mean 'dense'",
        "block 7 does not exist",
        "hidden",
        "multiple of the patch",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format_version": 9}, "format_version=9"),
        ({"steps": []}, "no step is left"),
        ({"steps": "all"}, "steps"),
        ({"model": None}, "model"),
        ({"colour": 1}, "colour"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_reason(plan: ModelPlan, change: dict, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        read_plan({**plan_json(plan), **change})


def test_blocks_out_of_order_are_refused(plan: ModelPlan) -> None:
    swapped = plan.model_copy(update={"steps": plan.steps[::-1]})
    assert any("keep the order" in error for error in check(swapped))


def test_a_plan_for_another_model_is_refused_with_the_difference() -> None:
    plan = plan_of(dense("vit_plain"))
    with pytest.raises(ConfigError, match=r"another model .*prefix 1, this one's 5"):
        build(plan, dense("vit_four_registers"))


def test_a_block_that_was_dropped_does_not_come_back() -> None:
    plan = plan_of(dense("vit_plain"))
    shallow = build(plan.model_copy(update={"steps": plan.steps[:2]}), dense("vit_plain"))
    with pytest.raises(ConfigError, match="blocks 2, 3, which an earlier conversion dropped"):
        build(plan, shallow)


@torch.no_grad()
def test_parts_that_no_step_uses_are_gone() -> None:
    plan = plan_of(dense("vit_layer_scale"))
    bare = plan.with_steps({2: StepPlan(block=2, attention=NoAttention(), mlp=NoMlp())})
    model = build(bare, dense("vit_layer_scale"))
    assert not [name for name in model.state_dict() if name.startswith("blocks.2.")]
    dropped = build(plan.model_copy(update={"steps": plan.steps[:2] + plan.steps[3:]}), dense("vit_layer_scale"))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), dropped(images))
