"""Another image size as a choice of the plan."""

import copy
from typing import Any

import pytest
import torch

import vitslim
from tests.variants import ALL, CHARACTERISTIC, dense, images_for
from vitslim.bench.cost import count_macs, count_parameters
from vitslim.errors import ConfigError
from vitslim.methods import convert
from vitslim.models import preprocessing
from vitslim.plans import cost, plan_json, read_plan
from vitslim.trunk import build, plan_of, trunk_of

# timm's own resizing of relative position biases: warned of by torch, numbers unharmed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.searchsorted:UserWarning"),
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing:UserWarning"),
]


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_it_is_what_timm_makes_of_that_size_and_costs_what_the_plan_says(name: str) -> None:
    model = convert(dense(name), "resolution", keep=0.5)
    sized = copy.deepcopy(dense(name))
    sized.set_input_size(img_size=preprocessing(model).image_size)
    images = images_for(sized)
    assert images.shape[2:] == preprocessing(model).image_size
    assert torch.equal(model(images), sized(images))
    expected = cost(plan_of(model))
    assert (expected.macs, expected.parameters) == (count_macs(model), count_parameters(model))


@pytest.mark.parametrize("name", CHARACTERISTIC)
@torch.no_grad()
def test_keeping_all_is_the_dense_model_bit_for_bit(name: str) -> None:
    model, images = dense(name), images_for(dense(name))
    same = convert(model, "resolution", keep=1.0)
    assert preprocessing(same).image_size == preprocessing(model).image_size
    assert torch.equal(same(images), model(images))


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("vit_plain", {}, (24, 24)),
        ("vit_oblong", {"keep": 0.5}, (24, 32)),
        ("vit_plain", {"size": 16}, (16, 16)),
        ("vit_plain", {"size": "24,40"}, (24, 40)),
    ],
)
def test_the_size_is_given_in_pixels_or_by_the_share_of_patches(
    name: str, options: dict[str, Any], size: tuple[int, int]
) -> None:
    model = convert(dense(name), "resolution", **options)
    assert plan_of(model).image_size == preprocessing(model).image_size == size
    assert read_plan(plan_json(plan_of(model))) == plan_of(model)


@pytest.mark.parametrize("other", ["prune", "merge"])
@torch.no_grad()
def test_either_order_with_a_token_rule_gives_the_same_model(other: str) -> None:
    source = dense("eva_mixed_rotary")
    first = convert(convert(source, "resolution", size=48), other, keep=0.5)
    last = convert(convert(source, other, keep=0.5), "resolution", size=48)
    assert plan_of(first) == plan_of(last)
    images = images_for(first)
    assert torch.equal(first(images), last(images))


@torch.no_grad()
def test_the_way_back_is_a_plan_too() -> None:
    source = dense("eva_rotary")
    small = convert(source, "resolution", size=16)
    large = build(plan_of(source), small)
    assert trunk_of(large).layout.grid == (4, 4)
    assert large(images_for(source)).shape == (2, 10)


def test_a_size_that_the_patches_do_not_divide_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError,
        match=r"size=\(20, 20\): the height has to be a multiple of the patch, 8 pixels; the nearest: 16 or 24",
    ):
        convert(dense("vit_plain"), "resolution", size=20)
    plan = plan_of(dense("vit_plain")).model_copy(update={"image_size": (32, 20)})
    with pytest.raises(ConfigError, match="the width has to be a multiple of the patch, 8 pixels"):
        build(plan, dense("vit_plain"))


def test_a_smaller_student_learns_from_its_dense_model_on_the_same_images() -> None:
    teacher = vitslim.open_model("builtin", pretrained=False, img_size=32, num_classes=4, depth=4, embed_dim=48)
    images = "fractals:classes=4,train_per_class=4,val_per_class=4,image_size=32"
    smaller = vitslim.convert(teacher, "resolution", size=24)
    student = vitslim.convert(vitslim.convert(smaller, "mlp", keep=0.5), "skipat", layers=(1, 2))
    settings = {"batch_size": 8, "tensorboard": False}
    fitted = vitslim.warm_start(student, teacher, images, steps=2, **settings)
    # The MLPs are solved for in closed form, the skip functions imitate: at the student's grid, where they will work.
    assert set(fitted.step_losses_before) == {0, 1, 2, 3}
    assert all(fitted.step_losses_after[step] < fitted.step_losses_before[step] for step in (0, 3))
    trained = vitslim.distill(student, teacher, images, steps=1, token_weight=0.5, **settings)
    assert trained.steps == 1
    assert vitslim.evaluate(student, images, teacher=teacher).images == 16
