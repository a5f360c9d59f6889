"""Shared weights under reused attention, sparse attention and token selection, in either order."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.variants import dense, images_for
from vitslim.checkpoint import load, save
from vitslim.errors import ConfigError
from vitslim.methods import convert
from vitslim.models import trace
from vitslim.trunk import DroppedPart, plan_of, trunk_of

# Two orders of summation in float32, through four blocks with residuals of rounding size.
CLOSE = {"atol": 2e-4, "rtol": 1e-3}

OTHERS: dict[str, dict[str, Any]] = {
    "skipat": {"layers": (1, 2)},
    "evo_vit": {"placeholders": "slow_fast"},
    "sparsifiner": {"layers": (1, 2, 3), "keep_rate": 0.4, "n_down": 4},
}


def both(name: str, method: str, first: bool, **options: object) -> nn.Module:
    torch.manual_seed(0)
    if first:
        return convert(convert(dense(name), "sret", **options), method, **OTHERS[method])
    return convert(convert(dense(name), method, **OTHERS[method]), "sret", **options)


@pytest.mark.parametrize("name", ["vit_four_registers", "eva_mixed_rotary", "beit_own_bias"])
@pytest.mark.parametrize("method", list(OTHERS))
@pytest.mark.parametrize("first", [True, False])
@torch.no_grad()
def test_full_rank_is_the_other_method_alone(name: str, method: str, first: bool) -> None:
    torch.manual_seed(0)
    alone, pair = convert(dense(name), method, **OTHERS[method]), both(name, method, first, rank="full")
    # The same new modules in both.
    own = {key: value for key, value in alone.state_dict().items() if ".steps." in key}
    assert not pair.load_state_dict(own, strict=False).unexpected_keys
    images = images_for(alone)
    torch.testing.assert_close(pair(images), alone(images), **CLOSE)


@pytest.mark.parametrize("method", list(OTHERS))
@pytest.mark.parametrize("first", [True, False])
def test_both_learn_and_load_again(method: str, first: bool, tmp_path: Path) -> None:
    model, images = both("vit_plain", method, first, nll=True, lrc=True), images_for(dense("vit_plain"))
    save(model, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model")(images), model(images))
    model.train()(images).square().mean().backward()
    apart = {f"blocks.{key}" for key in trunk_of(model).parameters_fitted_apart()}
    idle = {key for key, value in model.named_parameters() if value.grad is None}
    assert idle <= apart
    losses = trunk_of(model).local_loss(trace(dense("vit_plain"), images))
    assert {1, 2} <= losses.keys()
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("first", [True, False])
def test_attention_that_no_step_evaluates_leaves_views_and_shared_block(first: bool) -> None:
    model = both("vit_plain", "skipat", first)
    names = [name for name in model.state_dict() if ".attn." in name or "norm1" in name]
    assert not [name for name in names if not name.startswith(("blocks.0.", "blocks.3."))]
    assert isinstance(model.blocks[2].attn, DroppedPart)


def test_one_skipped_block_of_a_pair_leaves_the_other_its_attention() -> None:
    one = convert(convert(dense("vit_plain"), "sret"), "skipat", layers=(2,), identity=True)
    other = convert(convert(dense("vit_plain"), "skipat", layers=(2,), identity=True), "sret")
    for model in (one, other):
        assert "blocks.1.attn.qkv.weight" in model.state_dict()
        assert "blocks.steps.1.weights.own.attn.qkv.up" in model.state_dict()
        assert "blocks.steps.2.weights.own.attn.qkv.up" not in model.state_dict()
    # Decided after, block 2 no longer has a say in the matrix that it does not use.
    assert torch.equal(other.state_dict()["blocks.1.attn.qkv.weight"], dense("vit_plain").blocks[1].attn.qkv.weight)


@pytest.mark.parametrize(
    ("method", "first", "options", "message"),
    [
        ("evo_vit", True, {"slices": 2}, "works on the whole grid, but from step 1 on"),
        (
            "evo_vit",
            False,
            {"slices": 2},
            r"sret: step 1 \(2 slices, raster order\) works on the whole grid, but from step 1 on",
        ),
        ("skipat", False, {"slices": 2}, "block 1 has no dense attention"),
        ("sparsifiner", False, {"slices": 2}, "block 1 has no dense attention"),
        ("sparsifiner", True, {"slices": 2}, "has no dense attention any more"),
        ("skipat", False, {"recursions": 2}, "step 1 is not dense any more .*convert with sret first"),
        ("evo_vit", False, {"recursions": 2}, "not dense any more .*convert with sret first"),
    ],
)
def test_pairs_that_cannot_work_are_refused(method: str, first: bool, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        both("vit_plain", method, first, **options)


@torch.no_grad()
def test_tokens_may_be_sorted_after_the_sliced_steps() -> None:
    model = convert(dense("vit_plain"), "sret", groups=((0, 1),), slices=(2, 2))
    model = convert(model, "evo_vit", stages=(2,))
    images = images_for(model)
    assert model(images).isfinite().all()
    assert plan_of(model).steps[1].attention.describe() == "2 slices, permuted"
