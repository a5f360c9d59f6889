"""Models of one's own from a file of weights: what the file tells, what it cannot, what contradicts it."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tests.variants import lively_
from vitslim import checkpoint
from vitslim.errors import CheckpointError, ConfigError, VitslimWarning
from vitslim.opening import open_model

NAME = "vit_tiny_patch16_224"
OWN: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 4,
    "embed_dim": 48,
    "depth": 6,
    "num_heads": 3,
    "num_classes": 7,
}


def written(tmp_path: Path, model: nn.Module) -> Path:
    torch.save(lively_(model).eval().state_dict(), tmp_path / "own.pth")
    return tmp_path / "own.pth"


def opened(name: str, path: Path, **options: Any) -> nn.Module:
    with pytest.warns(VitslimWarning, match=f"{name} with .*as {path} has them"):
        return open_model(name, weights=path, **options)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "wider mlp": {"mlp_ratio": 3.1},
    "grey": {"in_chans": 1},
    "without qkv bias": {"qkv_bias": False},
    "layer scale and qk norm": {"init_values": 0.1, "qk_norm": True},
    "registers": {"reg_tokens": 4},
    "registers without a place": {"reg_tokens": 5, "no_embed_class": True},
    "mean of patches": {"class_token": False, "global_pool": "avg"},
    "class token and mean of patches": {"global_pool": "avg"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_file_of_a_vit_tells_everything_but_its_heads(tmp_path: Path, variant: str) -> None:
    options = {**OWN, **VARIANTS[variant]}
    own = VisionTransformer(**options)
    given = {"no_embed_class": True} if "no_embed_class" in options else {}
    model = opened(NAME, written(tmp_path, own), num_heads=3, **given)
    images = torch.randn(2, options.get("in_chans", 3), 32, 32)
    assert torch.equal(model(images), own(images))
    # What was read is kept with the model.
    checkpoint.save(model, tmp_path / "out")
    assert torch.equal(checkpoint.load(tmp_path / "out")(images), own(images))


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("deit_tiny_distilled_patch16_224", lambda: VisionTransformerDistilled(**OWN)),
        ("eva02_base_patch14_224", lambda: Eva(**OWN, qkv_fused=False, swiglu_mlp=True, scale_mlp=True, mlp_ratio=3)),
    ],
)
def test_other_plain_families_are_read_too(tmp_path: Path, name: str, own: Any) -> None:
    rotary = {"use_rot_pos_emb": False} if name.startswith("eva") else {}
    model = opened(name, written(tmp_path, source := own()), num_heads=3, **rotary)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), source(images))


def test_heads_that_a_norm_of_each_head_tells_need_not_be_said(tmp_path: Path) -> None:
    assert opened(NAME, written(tmp_path, VisionTransformer(**OWN, qk_norm=True))).blocks[0].attn.num_heads == 3


def test_heads_are_those_of_the_name_where_the_width_is_and_this_is_said(tmp_path: Path) -> None:
    path = written(tmp_path, VisionTransformer(**{**OWN, "embed_dim": 192}))
    with pytest.warns(VitslimWarning) as said:
        assert open_model(NAME, weights=path).blocks[0].attn.num_heads == 3
    assert str(said[0].message) == (
        f"{NAME} with depth 6, patch_size 4, img_size 32, as {path} has them; num_heads 3 as the name has, since no "
        "file says it"
    )


def test_heads_that_nobody_knows_are_asked_for_with_those_that_fit(tmp_path: Path) -> None:
    path = written(tmp_path, VisionTransformer(**OWN))
    with pytest.raises(ConfigError, match=r"blocks of width 48.*--model-arg num_heads=N .* of 48 fit 1, 2, 3, 4, 6$"):
        open_model(NAME, weights=path)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"depth": 12}, "with depth=12: your file has depth=6, with 6 blocks of width 48."),
        ({"embed_dim": 96}, "with embed_dim=96: your file has embed_dim=48, with 6 blocks of width 48."),
        ({"qkv_bias": False}, "with qkv_bias=False: your file has qkv_bias=True, with 6 blocks of width 48."),
    ],
)
def test_what_contradicts_the_file_is_refused_with_both_sides(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_model(NAME, weights=written(tmp_path, VisionTransformer(**OWN)), num_heads=3, **given)
    assert said in str(caught.value)


def test_another_image_or_patch_size_than_the_file_has_is_resampled_and_patches_are_said(tmp_path: Path) -> None:
    path = written(tmp_path, VisionTransformer(**OWN))
    assert opened(NAME, path, num_heads=3, img_size=64).pos_embed.shape[1] == 1 + 16 * 16
    with pytest.warns(VitslimWarning) as said:
        model = open_model(NAME, weights=path, num_heads=3, patch_size=8)
    assert model.patch_embed.patch_size == (8, 8)
    assert "resampled from 4 to 8 pixels, as asked" in str(said[-1].message)


def test_a_file_of_the_named_model_is_opened_without_a_word(tmp_path: Path) -> None:
    path = written(tmp_path, timm.create_model("test_vit", num_classes=3))
    assert open_model("test_vit", weights=path).num_classes == 3


ODD: dict[str, dict[str, Any]] = {
    "no patch": {"patch_size": 0},
    "a negative patch": {"patch_size": -4},
    "a word for a patch": {"patch_size": "x"},
    "no heads": {"num_heads": 0},
    "a list for a width": {"embed_dim": [3]},
    "a word for a depth": {"depth": "x"},
    "a mapping for a ratio": {"mlp_ratio": {}},
}


@pytest.mark.parametrize("pretrained", [True, False])
@pytest.mark.parametrize("case", ODD)
def test_options_that_build_nothing_are_refused_before_anything_is_fetched(case: str, pretrained: bool) -> None:
    with pytest.raises(ConfigError, match=f"{NAME} cannot be built with"):
        open_model(NAME, pretrained=pretrained, **ODD[case])
