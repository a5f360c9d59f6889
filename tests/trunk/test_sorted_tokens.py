"""The token state in which some tokens are inactive."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.models import TokenLayout
from vitslim.trunk import SortedTokens, Stream, TokenState

B, PREFIX, PATCHES, D, ACTIVE = 3, 2, 9, 4, 6
N = PREFIX + PATCHES
LAYOUT = TokenLayout(PREFIX, (3, 3))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def indices(seed: int) -> Tensor:
    """A permutation per image that leaves the prefix where it is."""
    front = torch.arange(PREFIX).expand(B, -1)
    return torch.cat([front, PREFIX + noise(B, PATCHES, seed=seed).argsort(dim=1)], dim=1)


def chosen(represented: bool = False, z: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None, SortedTokens]:
    """All tokens, the active ones, their ẑ, the state."""
    tokens = noise(B, N, D)
    shares = noise(B, N - ACTIVE).softmax(dim=1) if represented else None
    active, stream = SortedTokens(PREFIX).select(tokens, Stream(LAYOUT, z=z), indices(1), ACTIVE, shares)
    return tokens, active, stream.z, stream.token_state


def rows(everything: Tensor, at: Tensor) -> Tensor:
    return torch.stack([one[index] for one, index in zip(everything, at, strict=True)])


def test_it_is_a_token_state() -> None:
    assert isinstance(SortedTokens(PREFIX), TokenState)


@pytest.mark.parametrize("represented", [False, True])
def test_what_does_not_change_comes_back_as_it_was(represented: bool) -> None:
    tokens, active, _, state = chosen(represented)
    assert active.shape[1] == ACTIVE + represented
    assert torch.equal(active[:, :PREFIX], tokens[:, :PREFIX])
    assert torch.equal(state.restore(active), tokens)


@pytest.mark.parametrize("represented", [False, True])
def test_selecting_again_starts_from_all_tokens(represented: bool) -> None:
    tokens, active, _, state = chosen(represented)
    shares = noise(B, 1).softmax(dim=1) if represented else None
    again, stream = state.select(active, Stream(LAYOUT), indices(2), N - 1, shares)
    later = stream.token_state
    assert torch.equal(later.restore(again), tokens)
    assert torch.equal(later.order, rows(indices(1), indices(2)))
    everybody, _, joined = later.join(again, None)
    assert everybody.shape == tokens.shape
    assert torch.equal(joined.restore(everybody), tokens)


def test_changes_of_the_active_arrive_at_their_own_places_and_nowhere_else() -> None:
    tokens, active, _, state = chosen()
    restored = state.restore(active + 1.0)
    expected = tokens.clone()
    for image, order in enumerate(indices(1)):
        expected[image, order[:ACTIVE]] += 1.0
    assert torch.equal(restored, expected)


def test_the_inactive_follow_what_their_representative_gains() -> None:
    tokens, active, _, state = chosen(represented=True)
    inactive = rows(tokens, indices(1)[:, ACTIVE:])
    torch.testing.assert_close(active[:, -1:], (state.shares.unsqueeze(2) * inactive).sum(dim=1, keepdim=True))
    changed = active.clone()
    changed[:, -1] += 2.0
    expected = tokens.clone()
    for image, order in enumerate(indices(1)):
        expected[image, order[ACTIVE:]] += 2.0
    torch.testing.assert_close(state.restore(changed), expected)


@pytest.mark.parametrize("represented", [False, True])
def test_attention_outputs_are_sorted_along_and_found_again(represented: bool) -> None:
    z = noise(B, N, D, seed=5)
    _, active, z_active, state = chosen(represented, z)
    assert z_active.shape == active.shape
    assert torch.equal(z_active[:, :ACTIVE], rows(z, indices(1)[:, :ACTIVE]))
    assert torch.equal(state.whole_z(z_active), z)
    part, other = state.part_z(2.0 * z)
    torch.testing.assert_close(part, 2.0 * z_active)
    assert torch.equal(other.whole_z(part), 2.0 * z)
    _, again, _ = other.join(active, part)
    assert torch.equal(again, rows(2.0 * z, indices(1)))


def test_attention_outputs_that_nobody_has_are_not_made_up() -> None:
    _, active, _, state = chosen()
    with pytest.raises(ConfigError, match="reuses the attention output of tokens that took no part"):
        state.whole_z(active)


@pytest.mark.parametrize("represented", [False, True])
@pytest.mark.parametrize("shape", [(PATCHES, 6), (2, PATCHES, 6), (B, 1, PATCHES, 6), (B, 2, PATCHES, 6)])
def test_rotary_angles_go_with_their_patches(shape: tuple[int, ...], represented: bool) -> None:
    _, _, _, state = chosen(represented)
    rope = noise(*shape)
    angles = state.select_context({"rope": rope, "attn_mask": None, "is_causal": False})["rope"]
    patches = indices(1)[:, PREFIX:ACTIVE] - PREFIX
    full = rope.reshape((1,) * (4 - rope.ndim) + rope.shape).expand(B, -1, -1, -1)
    expected = torch.stack([one[:, at] for one, at in zip(full, patches, strict=True)])
    assert torch.equal(angles[:, :, : ACTIVE - PREFIX], expected)
    if represented:
        assert angles.shape[2] == ACTIVE - PREFIX + 1
        sine, cosine = angles[:, :, -1].chunk(2, dim=-1)
        assert not sine.any()
        assert (cosine == 1.0).all()


@pytest.mark.parametrize("represented", [False, True])
@pytest.mark.parametrize("shape", [(N, N), (2, N, N), (1, 2, N, N), (B, 1, N, N), (B, 1, 1, N), (1, 1, N)])
@pytest.mark.parametrize("kind", [torch.float32, torch.bool])
def test_masks_go_with_their_tokens(shape: tuple[int, ...], represented: bool, kind: torch.dtype) -> None:
    _, _, _, state = chosen(represented)
    mask = (noise(*shape) > 0).to(kind)
    picked = state.select_context({"attn_mask": mask})["attn_mask"]
    full = mask.expand(B, *((2,) if len(shape) > 2 and 2 in shape else (1,)), N, N)
    expected = torch.stack([one[:, at][:, :, at] for one, at in zip(full, indices(1)[:, :ACTIVE], strict=True)])
    extended = picked.expand(*expected.shape[:2], ACTIVE + represented, ACTIVE + represented)
    assert torch.equal(extended[:, :, :ACTIVE, :ACTIVE], expected)
    if represented:
        neutral = torch.ones((), dtype=kind) if kind == torch.bool else torch.zeros(())
        assert (extended[..., ACTIVE] == neutral).all()


@pytest.mark.parametrize("represented", [False, True])
def test_causal_order_is_the_natural_one(represented: bool) -> None:
    _, _, _, state = chosen(represented)
    context = state.select_context({"is_causal": True, "attn_mask": None})
    assert context["is_causal"] is False
    mask = context["attn_mask"]
    for image, at in enumerate(indices(1)[:, :ACTIVE]):
        assert mask[image, 0, :ACTIVE, :ACTIVE].tolist() == [[bool(key <= query) for key in at] for query in at]
    assert mask[:, :, ACTIVE:].all()


def test_what_may_belong_to_the_tokens_is_not_guessed() -> None:
    _, _, _, state = chosen()
    with pytest.raises(ConfigError, match="the blocks got pos, which vitslim cannot sort along"):
        state.select_context({"pos": noise(N)})
    assert state.select_context({"flag": 3}) == {"flag": 3}


def test_in_natural_order_nothing_is_touched() -> None:
    state, tokens = replace(SortedTokens(PREFIX), scores=noise(B, PATCHES)), noise(B, N, D)
    context = {"rope": noise(PATCHES, 4), "pos": noise(N)}
    assert state.restore(tokens) is tokens
    assert state.select_context(context) is context
    assert state.select_pairs(tokens) is tokens
    assert state.active_indices() is None
    assert state.part_z(tokens) == (tokens, state)
