"""Which models are refused, and in which words."""

import copy

import pytest
import timm
import torch
from inline_snapshot import snapshot
from timm.layers import DiffAttention
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import nn

from tests.variants import SIZE, dense
from vitslim.errors import UnsupportedModelError
from vitslim.methods import convert
from vitslim.models import adapter_for, family_of, trace
from vitslim.models.catalog import catalog, isotropic_names, model_info


def refusal(model: nn.Module) -> str:
    with pytest.raises(UnsupportedModelError) as caught:
        adapter_for(model)
    return str(caught.value)


def test_another_architecture_is_refused_by_name() -> None:
    model = timm.create_model("test_resnet")
    assert family_of(model) == "ResNet"
    assert refusal(model) == snapshot(
        "ResNet has no adapter; supported families: VisionTransformer, Eva, Beit. vitslim.register_adapter adds one "
        "(CONTRIBUTING.md)"
    )


def test_a_subclass_is_not_taken_for_its_parent() -> None:
    class Odd(VisionTransformer):
        pass

    assert refusal(Odd(**SIZE)).startswith("Odd has no adapter")


def test_parallel_branches_are_refused() -> None:
    assert refusal(VisionTransformer(**SIZE, block_fn=ParallelScalingBlock)) == snapshot(
        "VisionTransformer: block 0 is a ParallelScalingBlock, whose branches are not separable; supported: Block, "
        "ResPostBlock"
    )


def test_an_unknown_attention_is_refused() -> None:
    assert refusal(VisionTransformer(**SIZE, attn_layer=DiffAttention)) == snapshot(
        "VisionTransformer: block 0 has DiffAttention attention, wanted Attention; no adapter speaks it yet"
    )


def test_patch_dropout_is_refused() -> None:
    assert refusal(VisionTransformer(**SIZE, patch_drop_rate=0.5)) == snapshot(
        "patch_drop_rate > 0 removes patches at random in training, so that the grid is unknown; open the model with "
        "patch_drop_rate=0"
    )


def test_mixed_block_types_are_refused() -> None:
    model = copy.deepcopy(dense("vit_plain"))
    model.blocks[2] = copy.deepcopy(dense("vit_post_norm").blocks[2])
    assert refusal(model) == snapshot("VisionTransformer mixes block types; vitslim takes trunks of one block type")


def test_a_model_without_blocks_is_refused() -> None:
    model = VisionTransformer(**{**SIZE, "depth": 0})
    assert refusal(model) == snapshot("VisionTransformer without blocks; there is nothing to convert")


def test_a_converted_model_has_no_dense_adapter() -> None:
    model = convert(dense("vit_plain"), "skipat")
    assert refusal(model) == snapshot(
        "this VisionTransformer has a Trunk in place of its blocks; a dense model is wanted here"
    )
    with pytest.raises(UnsupportedModelError, match="a dense model is wanted here"):
        trace(model, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize(
    ("name", "family", "supported"),
    [
        ("vit_tiny_patch16_224", "VisionTransformer", True),
        ("deit_tiny_distilled_patch16_224", "VisionTransformer", True),
        ("eva02_tiny_patch14_224", "Eva", True),
        ("beit_base_patch16_224", "Beit", True),
        ("test_vit_relpos", "VisionTransformerRelPos", False),
    ],
)
def test_the_catalog_says_what_is_supported(name: str, family: str, supported: bool) -> None:
    row = model_info(name)
    assert (row.name, row.family, row.supported) == (name, family, supported)
    assert bool(row.reason) is not supported


def test_the_list_of_isotropic_models_names_each_once() -> None:
    names = isotropic_names()
    assert len(names) == len(set(names)) > 300


@pytest.mark.slow
def test_every_isotropic_model_is_supported_or_refused_with_a_reason() -> None:
    rows = list(catalog())
    # 265 of timm 1.0.31; later versions only add.
    assert sum(row.supported for row in rows) >= 265
    assert all(row.reason for row in rows if not row.supported)
