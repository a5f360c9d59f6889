"""Pruning by class attention between attention and MLP."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.methods.slow_tokens import Token, slow_tokens
from tests.variants import CHARACTERISTIC, dense, images_for
from vitslim.bench.cost import count_macs, count_parameters
from vitslim.errors import ConfigError
from vitslim.methods import convert, planned, read_method
from vitslim.methods.prune import Prune, PruneConfig
from vitslim.plans import ModelPlan, NoAttention, check, cost, dense_plan, share_of
from vitslim.plans.shape import vit_shape
from vitslim.trunk import SortedTokens, Stream, build, plan_of, trunk_of

TWICE: dict[str, Any] = {"layers": (0, 2), "keep": 0.6}


def steps_with(model: nn.Module, *choices: Prune | None) -> ModelPlan:
    plan = plan_of(model)
    return plan.with_steps({i: plan.steps[i].but(tokens=c) for i, c in enumerate(choices) if c is not None})


def pruned_slowly(model: nn.Module, image: Tensor, *, layers: tuple[int, ...], keep: float, fuse: bool) -> Tensor:
    """All tokens before the final norm: the paper's rule, with the pruned patches back as they left."""
    left: dict[int, Tensor] = {}

    def between(index: int, tokens: list[Token]) -> list[Token]:
        if index not in layers:
            return tokens
        prefix = [token for token in tokens if token.is_prefix]
        patches = sorted((token for token in tokens if token.patches), key=lambda token: -token.attention)
        former = [token for token in tokens if not token.is_prefix and not token.patches]
        kept = share_of(16, keep ** (1 + layers.index(index)))
        gone = patches[kept:]
        left.update({token.patches[0]: token.value for token in gone})
        weight = sum(token.attention for token in gone + former)
        fused = sum(token.attention / weight * token.value for token in gone + former)
        return prefix + patches[:kept] + ([Token(fused)] if fuse else [])

    tokens = slow_tokens(model, image, between, weigh=False)
    ended = left | {token.patches[0]: token.value for token in tokens if token.patches}
    return torch.stack([token.value for token in tokens if token.is_prefix] + [ended[patch] for patch in range(16)])


@pytest.mark.parametrize("fuse", [True, False])
@torch.no_grad()
def test_it_is_the_paper_s_rule_token_by_token(fuse: bool) -> None:
    model = dense("vit_plain")
    images = images_for(model)
    features = convert(model, "prune", fuse=fuse, **TWICE).forward_features(images)
    expected = torch.stack([pruned_slowly(model, image, fuse=fuse, **TWICE) for image in images])
    torch.testing.assert_close(features, model.norm(expected), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_pruned_patches_come_back_as_they_left() -> None:
    model = convert(dense("vit_plain"), "prune", layers=(1,), keep=0.5)
    _, after = model.forward_intermediates(images_for(model), indices=[1, 3], output_fmt="NLC")
    same = (after[0] == after[1]).all(dim=2)
    assert (same.sum(dim=1) == 8).all()


def test_by_default_a_model_of_twelve_blocks_prunes_after_three_six_and_nine() -> None:
    plan = dense_plan(vit_shape(width=384, depth=12, heads=6, image_size=(224, 224), patch=16))
    changed = planned(*read_method(PruneConfig(), {}), plan)
    assert [i for i, step in enumerate(changed.steps) if step.tokens.kind == "prune"] == [3, 6, 9]
    # 196 patches; 0.7, 0.49, 0.343 of them, the class token and the fused one
    tokens = [step.mlp_tokens for step in cost(changed).steps]
    assert tokens == [197] * 3 + [1 + 138 + 1] * 3 + [1 + 97 + 1] * 3 + [1 + 68 + 1] * 3
    assert [step.tokens for step in cost(changed).steps] == [197, *tokens[:-1]]


@pytest.mark.parametrize(("turn", "name"), list(enumerate(CHARACTERISTIC)))
def test_the_cost_of_the_plan_is_that_of_the_model(turn: int, name: str) -> None:
    model = convert(dense(name), "prune", **TWICE, fuse=bool(turn % 2))
    expected = cost(plan_of(model))
    assert (expected.macs, expected.parameters) == (count_macs(model), count_parameters(model))


@pytest.mark.parametrize("name", CHARACTERISTIC)
@torch.no_grad()
def test_keeping_all_is_the_dense_model_bit_for_bit(name: str) -> None:
    model, images = dense(name), images_for(dense(name))
    assert torch.equal(convert(model, "prune", keep=1.0)(images), model(images))
    # The class row is read and nobody leaves; operands projected apart round in another way.
    score = "class" if plan_of(model).model.has_class_token else "mean_query"
    watched = build(steps_with(model, Prune(keep=1.0, score=score)), model)
    torch.testing.assert_close(watched(images), model(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["vit_no_class_token", "eva_mixed_rotary", "beit_both_biases"])
@torch.no_grad()
def test_the_order_of_images_in_a_batch_is_that_of_the_outputs(name: str) -> None:
    model = convert(dense(name), "prune", **TWICE)
    images = images_for(model, batch=3)
    torch.testing.assert_close(model(images.flip(0)), model(images).flip(0), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_the_places_of_patches_do_not_matter_where_positions_do_not() -> None:
    """Without position embeddings a permutation of the patches permutes the features and leaves the class token."""
    model = convert(dense("vit_plain"), "prune", **TWICE)
    model.pos_embed.zero_()
    images = images_for(model)
    # Patches of 8 pixels on a grid of 4 × 4, mirrored.
    grid = images.unflatten(3, (4, 8)).unflatten(2, (4, 8))
    mirrored = grid.flip(2).flip(4).flatten(4, 5).flatten(2, 3)
    features, other = model.forward_features(images), model.forward_features(mirrored)
    torch.testing.assert_close(other[:, :1], features[:, :1], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(other[:, 1:], features[:, 1:].flip(1), atol=1e-5, rtol=1e-4)


def test_the_fused_token_is_a_weighted_mean_and_hands_gradients_to_what_was_pruned() -> None:
    model = convert(dense("vit_plain"), "prune", layers=(0,), keep=0.5)
    taken: list[Tensor] = []
    handle = model.blocks[0].mlp.register_forward_pre_hook(lambda module, args: taken.append(args[0]))
    images = images_for(model).requires_grad_()
    model(images).sum().backward()
    handle.remove()
    assert taken[0].shape[1] == 1 + 8 + 1
    # The class token alone is read, yet every pixel has a say in it.
    assert (images.grad.abs().amax(dim=1) > 0).all()


@torch.no_grad()
def test_before_the_step_it_is_the_selection_by_the_row_of_the_step_before() -> None:
    """Sparsifiner's form: the head-mean of the class row ranks, nothing is fused, the pruned come back."""
    model = dense("vit_plain")
    choices = [None, Prune(keep=0.5, where="before", fuse=False), None, Prune(keep=0.2, where="before", fuse=False)]
    found = build(steps_with(model, *choices), model)
    images, stream, state = images_for(model), None, None
    tokens = model._pos_embed(model.patch_embed(images))
    for index, block in enumerate(model.blocks):
        if choices[index] is not None:
            scores = stream[:, :, 1:].mean(dim=1)
            order = 1 + scores.argsort(dim=1, descending=True, stable=True)
            front = torch.zeros(2, 1, dtype=torch.int64)
            behind = torch.arange(tokens.shape[1], 17).expand(2, -1)
            state = state or SortedTokens(1)
            active = 1 + share_of(16, choices[index].keep)
            order = torch.cat([front, order, behind], dim=1)
            tokens, after = state.select(tokens, Stream(trunk_of(found).layout), order, active)
            state = after.token_state
        normed = block.norm1(tokens)
        stream = trunk_of(found).adapter.class_attention(block, normed, {})
        tokens = tokens + block.attn(normed)
        tokens = tokens + block.mlp(block.norm2(tokens))
    torch.testing.assert_close(found.forward_features(images), model.norm(state.restore(tokens)), atol=1e-5, rtol=1e-5)


def test_what_cannot_be_pruned_is_refused_from_the_data_alone() -> None:
    model = dense("vit_plain")
    with pytest.raises(ConfigError, match=r"prune.layers: block 9 does not exist; choose from 0..3"):
        convert(model, "prune", layers=(1, 9))
    with pytest.raises(ConfigError, match="score='mean_query': this VisionTransformer has a class token; use 'class'"):
        convert(model, "prune", score="mean_query")
    once = convert(model, "merge", layers=(1,))
    with pytest.raises(ConfigError, match="prune: step 1 already has a rule for its tokens"):
        convert(once, "prune")
    grows = steps_with(model, Prune(keep=0.5), Prune(keep=0.7))
    assert check(grows) == ["step 1: keep=0.7 is 12 of 16 patches, but 8 are left; they only become fewer"]
    mixed = steps_with(model, Prune(keep=0.5), Prune(keep=0.4, fuse=False))
    assert check(mixed) == ["step 1: all prunings of a plan have the same where and fuse"]
    plan = steps_with(model, None, Prune(keep=0.5))
    idle = plan.with_steps({1: plan.steps[1].but(attention=NoAttention())})
    assert "chooses patches by its own attention, which computes none" in check(idle)[0]
