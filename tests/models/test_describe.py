"""A dense model can be built again from its description."""

import copy
import json
from typing import Any

import pytest
import timm
import torch
from timm.layers import RmsNorm
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.variants import ALL, NOT_DESCRIBABLE, SIZE, dense, images_for, lively_
from vitslim.errors import CheckpointError
from vitslim.methods import convert
from vitslim.models import BaseModel, build_base, describe
from vitslim.opening import open_model
from vitslim.trunk import trunk_of

TINY: dict[str, Any] = {"depth": 3, "embed_dim": 48, "num_heads": 3}


def assert_rebuilt(model: nn.Module, base: BaseModel | None) -> None:
    """The description survives JSON and gives a model with the same tensors and outputs."""
    assert base is not None
    read = BaseModel(**json.loads(base.model_dump_json()))
    rebuilt = build_base(read)
    assert shapes(rebuilt) == shapes(model)
    rebuilt.load_state_dict(model.state_dict())
    images = torch.randn(2, model.in_chans, *model.patch_embed.img_size)
    assert torch.equal(rebuilt.eval()(images), copy.deepcopy(model).eval()(images))


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", [name for name in ALL if name not in NOT_DESCRIBABLE])
def test_every_variant_can_be_built_again(name: str) -> None:
    assert_rebuilt(dense(name), describe(dense(name)))


@pytest.mark.parametrize("name", sorted(NOT_DESCRIBABLE))
def test_what_no_file_can_name_is_not_described(name: str) -> None:
    assert describe(dense(name)) is None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"img_size": 48, "num_classes": 7}),
        ("vit_tiny_patch16_224", {"img_size": (32, 64), "num_classes": 0, "global_pool": "avg"}),
        ("deit_tiny_distilled_patch16_224", {"img_size": 32, "num_classes": 5}),
        ("deit3_small_patch16_224", {"img_size": 32, "drop_path_rate": 0.2}),
        ("vit_small_patch16_dinov3", {"img_size": 32, "num_classes": 4}),
        ("eva02_tiny_patch14_224", {"img_size": 28, "patch_size": 7}),
        ("beit_base_patch16_224", {"img_size": 32, "num_classes": 3}),
        ("vit_tiny_r_s16_p8_224", {"img_size": 64, "num_classes": 3}),
        ("vit_base_patch16_clip_224", {"img_size": 32, "in_chans": 1}),
        ("vit_tiny_patch16_224", {"img_size": 32, "norm_layer": "rmsnorm", "reg_tokens": 2}),
    ],
)
@pytest.mark.parametrize("opened_by", ["vitslim", "timm"])
def test_models_by_name_with_overrides_can_be_built_again(name: str, options: dict[str, Any], opened_by: str) -> None:
    small = {**options, **TINY}
    if opened_by == "vitslim":
        model = open_model(name, pretrained=False, **small)
    else:
        model = timm.create_model(name, **small)
    base = describe(lively_(model))
    assert base is not None
    assert base.architecture.split(".")[0] == name
    assert_rebuilt(model, base)


def test_the_name_keeps_the_tag_that_decides_the_normalisation() -> None:
    described = describe(timm.create_model("vit_tiny_patch16_224.augreg_in21k", **TINY))
    assert described is not None
    assert described.architecture == "vit_tiny_patch16_224.augreg_in21k"


def changed_later() -> dict[str, Any]:
    return {
        "classes": lambda model: model.reset_classifier(3),
        "no classifier": lambda model: model.reset_classifier(0),
        "pooling": lambda model: model.reset_classifier(3, "avg"),
        "image size": lambda model: model.set_input_size((48, 32)),
        "patch size": lambda model: model.set_input_size((32, 32), patch_size=(4, 4)),
        "fewer blocks": lambda model: model.prune_intermediate_layers([1], prune_head=False),
    }


@pytest.mark.parametrize("change", list(changed_later()))
@pytest.mark.parametrize("built_by", ["vitslim", "timm", "hand"])
def test_changes_after_building_are_described(change: str, built_by: str) -> None:
    if built_by == "vitslim":
        model = open_model("vit_tiny_patch16_224", pretrained=False, img_size=32, patch_size=8, **TINY)
    elif built_by == "timm":
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, **TINY)
    else:
        model = VisionTransformer(**SIZE)
    changed_later()[change](model)
    assert_rebuilt(model, describe(lively_(model)))


@pytest.mark.parametrize("change", ["classes", "pooling", "image size"])
def test_changes_after_conversion_are_described_too(change: str) -> None:
    from vitslim.models.base import refresh

    model = open_model("vit_tiny_patch16_224", pretrained=False, img_size=32, patch_size=8, **TINY)
    converted = convert(model, "skipat", layers=())
    changed_later()[change](converted)
    base = trunk_of(converted).base
    assert base is not None
    assert shapes(build_base(refresh(base, converted))) == shapes(converted)


def test_classes_as_options_are_not_described_but_read_off_where_possible() -> None:
    # timm's record holds a class, which JSON cannot; the layers tell the same.
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, act_layer=nn.GELU, **TINY)
    base = describe(lively_(model))
    assert base is not None
    assert base.architecture == ":VisionTransformer"
    assert_rebuilt(model, base)


@pytest.mark.parametrize(
    "model",
    [
        VisionTransformer(**SIZE, norm_layer=RmsNorm),
        VisionTransformer(**SIZE, act_layer="relu"),
        Eva(**SIZE, norm_layer=RmsNorm),
        nn.Linear(2, 2),
    ],
    ids=["vit norm", "vit activation", "eva norm", "no vit"],
)
def test_a_model_whose_layers_differ_is_not_described_wrongly(model: nn.Module) -> None:
    assert describe(model) is None


def test_a_layer_with_a_setting_of_its_own_is_not_described_wrongly() -> None:
    model = VisionTransformer(**SIZE)
    assert describe(model) is not None
    model.blocks[1].norm1.eps = 0.1
    assert describe(model) is None


def test_a_setting_without_parameters_is_not_overlooked() -> None:
    # The reference grid of the rotary embedding changes outputs, yet no parameter.
    with_reference = describe(Eva(**SIZE, use_rot_pos_emb=True, ref_feat_shape=(8, 8)))
    without = describe(Eva(**SIZE, use_rot_pos_emb=True))
    assert with_reference is not None
    assert without is not None
    assert with_reference.options["ref_feat_shape"] == [8, 8]
    assert without.options["ref_feat_shape"] is None


def test_an_unknown_class_in_a_file_is_refused() -> None:
    with pytest.raises(CheckpointError, match="base model class 'Swin' is not one of VisionTransformer,"):
        build_base(BaseModel(architecture=":Swin"))


def test_describing_allocates_nothing_and_changes_nothing() -> None:
    model = dense("eva_dinov3")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = images_for(model)
    logits = model(images)
    describe(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(model(images), logits)
