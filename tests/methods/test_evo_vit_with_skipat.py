"""Skipped blocks among inactive patches, converted in either order."""

from typing import Any

import pytest
import torch
from inline_snapshot import snapshot
from torch import nn

from tests.methods.slow_evo_vit import slow_evo_vit
from tests.variants import dense, images_for, lively_
from vitslim.errors import ConfigError
from vitslim.methods import convert, method_support
from vitslim.trunk import plan_of, trunk_of

# Name: skipped blocks, Evo-ViT's options.
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "before_the_reduction": ({"layers": (1,)}, {"stages": (2,)}),
    "across_its_entry": ({"layers": (1, 2)}, {"stages": (2,)}),
    "through_two_stages": ({"layers": (1, 2, 3)}, {"stages": (1, 3), "keep": (0.5, 0.25)}),
    "followers": ({"layers": (1, 2, 3)}, {"stages": (1, 3), "keep": (0.5, 0.25), "placeholders": "slow_fast"}),
    "layer_wise": ({"layers": (1, 2, 3)}, {"stages": (1,), "schedule": "layer", "placeholders": "slow_fast"}),
    "identity": ({"layers": (1, 2), "identity": True}, {"stages": (1,), "placeholders": "slow_fast"}),
    "identity_within_a_stage": ({"layers": (2,), "identity": True}, {"stages": (1,)}),
    "after_all_came_back": ({"layers": (3,)}, {"stages": (1, 2), "keep": (0.5, 1.0)}),
    "the_defaults": ({}, {}),
}


def both_orders(name: str, skipped: dict[str, Any], reduced: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    first = convert(convert(dense(name), "skipat", **skipped), "evo_vit", **reduced)
    second = convert(convert(dense(name), "evo_vit", **reduced), "skipat", **skipped)
    lively_(nn.ParameterList(trunk_of(first).new_parameters().values()))
    second.load_state_dict(first.state_dict())
    return first, second


NAMES = ["vit_four_registers", "vit_no_class_token", "eva_mixed_rotary", "beit_own_bias"]


# Two neighbours of the four for each pair, in turn; the others when there is time.
@pytest.mark.parametrize(
    ("name", "pair"),
    [
        pytest.param(name, pair, marks=() if (one - other) % 4 < 2 else pytest.mark.slow)
        for one, pair in enumerate(PAIRS)
        for other, name in enumerate(NAMES)
    ],
)
@torch.no_grad()
def test_either_order_gives_the_plain_form(name: str, pair: str) -> None:
    first, second = both_orders(name, *PAIRS[pair])
    images = images_for(dense(name), batch=3)
    features = first.forward_features(images)
    assert torch.equal(second.forward_features(images), features)
    expected = slow_evo_vit(dense(name), images, first)[-1]
    torch.testing.assert_close(features, first.norm(expected), atol=5e-5, rtol=1e-4)


def test_the_class_row_comes_from_the_last_block_that_attends() -> None:
    for model in both_orders("vit_plain", {"layers": (1,)}, {"stages": (2,)}):
        rows = [index for index, step in enumerate(trunk_of(model).steps) if step.wants_row]
        assert rows == [0]


@pytest.mark.parametrize(
    ("skipped", "reduced"),
    [
        # Φ would read a grid of which half has no attention output.
        ({"layers": (2,)}, {"stages": (1,)}),
        ({"layers": (3,)}, {"stages": (1, 3)}),
        # Other patches are chosen than the ones whose attention output is reused.
        ({"layers": (2,), "identity": True}, {"stages": (1, 2)}),
        ({"layers": (2,), "identity": True}, {"stages": (1,), "schedule": "layer"}),
    ],
)
def test_attention_outputs_that_do_not_exist_are_not_reused(skipped: dict[str, Any], reduced: dict[str, Any]) -> None:
    once = convert(dense("vit_plain"), "skipat", **skipped)
    reason = "wants the attention output of tokens that took no part in step"
    with pytest.raises(ConfigError, match=reason):
        convert(once, "evo_vit", **reduced)
    with pytest.raises(ConfigError, match=reason):
        convert(convert(dense("vit_plain"), "evo_vit", **reduced), "skipat", **skipped)


def test_a_refusal_names_both_steps() -> None:
    once = convert(dense("vit_plain"), "skipat", layers=(2,))
    assert method_support(plan_of(once))["evo_vit"]["reason"] == snapshot(
        "evo_vit: step 2 (reuse (expansion 2)) wants the attention output of tokens that took no part in step 1 "
        "(kept 50 %, chosen by class attention, others frozen); start the run of reusing steps right after a step in "
        "which all tokens take part"
    )
