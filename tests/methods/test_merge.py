"""Merging similar patches, with attention weighted by their number."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.methods.slow_tokens import Token, slow_tokens
from tests.variants import CHARACTERISTIC, dense, images_for
from vitslim.bench.cost import count_macs, count_parameters
from vitslim.errors import ConfigError
from vitslim.methods import convert
from vitslim.methods.merge import Merge
from vitslim.plans import NoAttention, check, cost
from vitslim.trunk import MergedTokens, TokenState, build, plan_of

THRICE: dict[str, Any] = {"layers": (0, 1, 2), "keep": 0.4}


def merged_slowly(model: nn.Module, image: Tensor, kept: dict[int, int]) -> Tensor:
    """All tokens before the final norm, every patch with its group's."""

    def between(index: int, tokens: list[Token]) -> list[Token]:
        if index not in kept:
            return tokens
        prefix, groups = [t for t in tokens if t.is_prefix], [t for t in tokens if not t.is_prefix]
        a, b = groups[::2], groups[1::2]
        edges: list[tuple[float, Token, int]] = []
        for token in a:
            alike = [float(torch.cosine_similarity(token.key, other.key, dim=0)) for other in b]
            edges.append((max(alike), token, alike.index(max(alike))))
        edges.sort(key=lambda edge: -edge[0])
        joining = len(groups) - kept[index]
        merged: list[Token] = []
        for place, target in enumerate(b):
            members = [target] + [token for _, token, other in edges[:joining] if other == place]
            patches = [patch for token in members for patch in token.patches]
            value = sum(len(token.patches) * token.value for token in members) / len(patches)
            merged.append(Token(value, patches))
        return prefix + [token for _, token, _ in edges[joining:]] + merged

    tokens = slow_tokens(model, image, between, weigh=True)
    of_patch = {patch: token.value for token in tokens for patch in token.patches}
    return torch.stack([token.value for token in tokens if token.is_prefix] + [of_patch[i] for i in range(16)])


@torch.no_grad()
def test_it_is_the_paper_s_rule_token_by_token() -> None:
    model = dense("vit_plain")
    images = images_for(model)
    changed = convert(model, "merge", **THRICE)
    kept = {index: step.mlp_tokens - 1 for index, step in enumerate(cost(plan_of(changed)).steps[:3])}
    assert kept == {0: 13, 1: 10, 2: 7}
    expected = torch.stack([merged_slowly(model, image, kept) for image in images])
    torch.testing.assert_close(changed.forward_features(images), model.norm(expected), atol=1e-5, rtol=1e-4)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def merged_twice(count: int = 9) -> tuple[Tensor, Tensor, MergedTokens]:
    tokens = noise(2, 2 + count, 8)
    state = MergedTokens.single(tokens, 2)
    once, state = state.merge(tokens, noise(2, count, 4), 3)
    twice, state = state.merge(once, noise(2, count - 3, 4), 2)
    return tokens, twice, state


def test_it_is_a_token_state() -> None:
    assert isinstance(merged_twice()[2], TokenState)


def test_every_group_is_the_mean_of_its_patches_and_every_patch_has_one() -> None:
    tokens, merged, state = merged_twice()
    assert torch.equal(merged[:, :2], tokens[:, :2])
    assert (state.sizes.sum(dim=1) == 9).all()
    for image in range(2):
        for group in range(4):
            members = tokens[image, 2:][state.groups[image] == group]
            assert len(members) == state.sizes[image, group]
            torch.testing.assert_close(merged[image, 2 + group], members.mean(dim=0))
            # It has the place of one of them.
            assert state.groups[image, state.indices[image, group]] == group


def test_the_mean_over_restored_patches_is_that_over_all_patches_before() -> None:
    tokens, merged, state = merged_twice()
    restored = state.restore(merged)
    assert restored.shape == tokens.shape
    torch.testing.assert_close(restored[:, 2:].mean(dim=1), tokens[:, 2:].mean(dim=1))


def test_equal_patches_merge_without_changing_anything() -> None:
    """Attention with the log sizes over groups of equal tokens is attention over all of them."""
    key, value, query = noise(1, 6, 8), noise(1, 6, 5), noise(1, 3, 8)
    repeats = torch.tensor([0, 0, 1, 1, 2, 3, 3, 3, 4, 5])
    full = (query @ key[:, repeats].transpose(1, 2)).softmax(dim=-1) @ value[:, repeats]
    tokens = key[:, repeats]
    state = MergedTokens.single(tokens, 0)
    merged, state = state.merge(tokens, tokens, 3)
    torch.testing.assert_close(state.restore(merged), tokens)
    at = state.indices[0]
    weighed = (query @ merged.transpose(1, 2) + state.key_bias()[0]).softmax(dim=-1) @ value[:, repeats[at]]
    torch.testing.assert_close(weighed, full)


@pytest.mark.parametrize("name", CHARACTERISTIC)
def test_the_cost_of_the_plan_is_that_of_the_model(name: str) -> None:
    model = convert(dense(name), "merge", **THRICE)
    expected = cost(plan_of(model))
    assert (expected.macs, expected.parameters) == (count_macs(model), count_parameters(model))


@pytest.mark.parametrize("name", CHARACTERISTIC)
@torch.no_grad()
def test_keeping_all_is_the_dense_model_bit_for_bit(name: str) -> None:
    model, images = dense(name), images_for(dense(name))
    assert torch.equal(convert(model, "merge", keep=1.0)(images), model(images))


@pytest.mark.parametrize("name", ["vit_no_class_token", "eva_mixed_rotary", "eva_grouped_queries", "beit_both_biases"])
@torch.no_grad()
def test_the_order_of_images_in_a_batch_is_that_of_the_outputs(name: str) -> None:
    model = convert(dense(name), "merge", **THRICE)
    images = images_for(model, batch=3)
    torch.testing.assert_close(model(images.flip(0)), model(images).flip(0), atol=1e-5, rtol=1e-4)


def test_every_patch_is_reached_by_the_gradient() -> None:
    model = convert(dense("vit_plain"), "merge", **THRICE)
    images = images_for(model).requires_grad_()
    model(images).sum().backward()
    assert (images.grad.abs().amax(dim=1) > 0).all()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_under_autocast_the_residual_stream_keeps_its_precision() -> None:
    tokens = noise(2, 11, 8)
    state = MergedTokens.single(tokens, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reduced, _ = state.merge(tokens, noise(2, 9, 4), 3)
    assert torch.equal(reduced, state.merge(tokens, noise(2, 9, 4), 3)[0])


def test_what_cannot_be_merged_is_refused_from_the_data_alone() -> None:
    model = dense("vit_plain")
    plan = plan_of(model)

    def errors(*choices: Merge) -> list[str]:
        return check(plan.with_steps({i: plan.steps[i].but(tokens=choice) for i, choice in enumerate(choices)}))

    assert errors(Merge(keep=0.5), Merge(keep=0.7)) == [
        "step 1: keep=0.7 is 12 of 16 patches, but 8 are left; they only become fewer"
    ]
    assert errors(Merge(keep=0.4)) == [
        "step 0: keep=0.4 merges 9 of 16 patches; at most half of them can be merged in one step"
    ]
    idle = plan.with_steps({1: plan.steps[1].but(tokens=Merge(keep=0.5), attention=NoAttention())})
    assert check(idle) == ["step 1: patches are merged by the keys of dense attention, here it is none"]
    with pytest.raises(ConfigError, match=r"merge.r=4: 4 blocks would merge 16 of 16 patches; give at most 3"):
        convert(model, "merge", r=4)
    with pytest.raises(ConfigError, match="merge: step 1 already has a rule for its tokens"):
        convert(convert(model, "prune", layers=(1,)), "merge")


def test_r_merges_as_many_in_every_block() -> None:
    changed = convert(dense("vit_plain"), "merge", r=3)
    assert [step.mlp_tokens - 1 for step in cost(plan_of(changed)).steps] == [13, 10, 7, 4]


@torch.no_grad()
def test_a_place_decides_rotary_angles_and_biases() -> None:
    """With positions of every kind, merging equal patches of one place changes nothing that attention sees."""
    model = dense("eva_mixed_rotary")
    plan = plan_of(model)
    whole = build(plan.with_steps({0: plan.steps[0].but(tokens=Merge(keep=1.0))}), model)
    images = images_for(model)
    torch.testing.assert_close(whole(images), model(images), atol=1e-5, rtol=1e-4)
    _, _, state = merged_twice()
    rope = noise(9, 6)
    angles = state.select_context({"rope": rope})["rope"]
    assert torch.equal(angles[:, 0], rope[state.indices])
    pairs = noise(11, 11)
    at = state.active_indices()
    expected = torch.stack([pairs[one][:, one] for one in at]).unsqueeze(1)
    assert torch.equal(state.select_pairs(pairs), expected)
