"""The ops behind which the kernels of sparse attention stand, in their readable forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.kernels.counting import Counting
from tests.kernels.test_sparse_attention import CLOSE, OPERANDS, any_keys, operands
from vitslim.errors import ConfigError
from vitslim.kernels import bit_attention, kept_bits, kept_keys, serving, sparse_attention
from vitslim.kernels.key_bits import bits_of_keys, packed_bits, unpacked_bits

TILES = [1, 4, 16]


@given(columns=st.integers(1, 100), seed=st.integers(0, 9))
def test_bits_hold_a_mask_whole(columns: int, seed: int) -> None:
    mask = torch.rand(2, 3, columns, generator=torch.Generator().manual_seed(seed)) < 0.5
    bits = packed_bits(mask)
    assert bits.dtype == torch.int32
    assert bits.shape == (2, 3, -(-columns // 32))
    assert torch.equal(unpacked_bits(bits, columns), mask)
    assert not unpacked_bits(bits, bits.shape[-1] * 32)[..., columns:].any()


def test_the_first_key_is_the_lowest_bit() -> None:
    assert packed_bits(torch.arange(33) == 0).tolist() == [1, 0]
    assert packed_bits(torch.arange(33) == 31).tolist() == [-(2**31), 0]
    assert packed_bits(torch.arange(33) == 32).tolist() == [0, 1]


@pytest.mark.parametrize("tile", TILES)
def test_kept_bits_are_the_kept_keys(tile: int) -> None:
    generator = torch.Generator().manual_seed(0)
    coefficients, basis = torch.rand(2, 3, 15, 5, generator=generator), torch.rand(5, 17, generator=generator)
    how = {"top": 3, "keys": 6, "tile": tile, "prefix": 2}
    assert torch.equal(kept_bits(coefficients, basis, **how), bits_of_keys(kept_keys(coefficients, basis, **how), 17))


def by_bits(query: Tensor, key: Tensor, value: Tensor, kept: Tensor, tile: int) -> Tensor:
    return bit_attention(query, key, value, bits_of_keys(kept, 17), tile=tile, **OPERANDS)


def by_tiles(query: Tensor, key: Tensor, value: Tensor, kept: Tensor, tile: int) -> Tensor:
    return torch.ops.vitslim.tile_attention(query, key, value, kept, tile, 2, 0.3)[0]


@pytest.mark.parametrize("tile", [1, 4])
@pytest.mark.parametrize("attention", [by_bits, by_tiles])
def test_outputs_and_gradients_are_those_of_sparse_attention(tile: int, attention) -> None:
    weight = torch.randn(2, 3, 17, 8, generator=torch.Generator().manual_seed(5))
    results = []
    for form in (attention, lambda *parts, tile: sparse_attention(*parts, tile=tile, **OPERANDS)):
        parts = [part.requires_grad_() for part in operands()]
        mixed = form(*parts, any_keys(tile), tile=tile)
        (mixed * weight).sum().backward()
        results.append([mixed, *(part.grad for part in parts)])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("tile", [1, 4])
def test_indices_of_32_bits_are_not_taken_for_bits(tile: int) -> None:
    gradients = []
    for dtype in (torch.int64, torch.int32):
        parts = [part.requires_grad_() for part in operands()]
        mixed = by_tiles(*parts, any_keys(tile).to(dtype), tile=tile)
        gradients.append(torch.autograd.grad(mixed.square().sum(), parts))
    assert all(map(torch.equal, *gradients))


def test_bits_of_another_tile_or_length_are_refused() -> None:
    bits = bits_of_keys(any_keys(4), 17)
    with pytest.raises(ConfigError, match=r"shape \(2, 3, 4, 1\) for tiles of 1 queries; wanted \(2, 3, 15, 1\)"):
        bit_attention(*operands(), bits, tile=1, **OPERANDS)
    with pytest.raises(ConfigError, match=r"wanted \(2, 3, 4, 1\)"):
        bit_attention(*operands(), bits.repeat(1, 1, 1, 2), tile=4, **OPERANDS)


def test_heads_are_merged_without_a_copy() -> None:
    mixed = by_bits(*operands(), any_keys(1), 1)
    assert mixed.transpose(1, 2).is_contiguous()


def test_the_log_sum_exp_is_that_of_the_kept_scores() -> None:
    query, key, value = operands()
    everything = packed_bits(torch.ones(2, 3, 15, 17, dtype=torch.bool))
    _, lse = torch.ops.vitslim.bit_attention(query, key, value, everything, 1, 2, 0.3)
    torch.testing.assert_close(lse, (query @ key.transpose(-2, -1) * 0.3).logsumexp(dim=-1), **CLOSE)


def test_a_query_that_sees_nothing_gets_zeros_and_a_finite_gradient() -> None:
    parts = [part.requires_grad_() for part in operands()]
    mixed = bit_attention(*parts, torch.zeros(2, 3, 15, 1, dtype=torch.int32), tile=1, **OPERANDS)
    assert torch.equal(mixed[:, :, 2:], torch.zeros(2, 3, 15, 8))
    mixed.square().sum().backward()
    assert all(part.grad.isfinite().all() for part in parts)


@pytest.mark.parametrize(("tile", "op"), [(4, "bit_attention"), (7, "bit_attention"), (16, "tile_attention")])
def test_where_kernels_serve_sparse_attention_goes_through_their_ops(
    tile: int, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = operands(tokens=40)
    kept = any_keys(tile, tokens=40)
    expected = sparse_attention(*parts, kept, tile=tile, **OPERANDS)
    monkeypatch.setattr(serving, "kernels_serve", lambda tensor: True)
    with Counting() as counting:
        found = sparse_attention(*parts, kept, tile=tile, **OPERANDS)
    assert counting.called == {op}
    torch.testing.assert_close(found, expected, **CLOSE)


def test_a_bias_and_wide_heads_are_left_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "kernels_serve", lambda tensor: True)
    with Counting() as counting:
        sparse_attention(*operands(), any_keys(4), tile=4, bias=torch.zeros(17, 17), **OPERANDS)
        wide = torch.zeros(2, 3, 17, 129)
        sparse_attention(wide, wide, wide, any_keys(4), tile=4, **OPERANDS)
    assert counting.called == {"sparse_attention"}


@pytest.mark.compiled
@pytest.mark.parametrize("tile", [1, 16])
def test_the_compiler_takes_forward_and_backward_whole(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "kernels_serve", lambda tensor: True)

    def mixed(query: Tensor, key: Tensor, value: Tensor, coefficients: Tensor, basis: Tensor) -> Tensor:
        if tile == 1:
            bits = kept_bits(coefficients, basis, top=3, keys=6, tile=1, prefix=2)
            return bit_attention(query, key, value, bits, tile=1, **OPERANDS)
        kept = kept_keys(coefficients, basis, top=3, keys=6, tile=tile, prefix=2)
        return sparse_attention(query, key, value, kept, tile=tile, **OPERANDS)

    generator = torch.Generator().manual_seed(0)
    coefficients, basis = torch.rand(2, 3, 38, 5, generator=generator), torch.rand(5, 40, generator=generator)
    results = []
    for attention in (mixed, torch.compile(mixed, fullgraph=True)):
        parts = [part.requires_grad_() for part in operands(tokens=40)]
        out = attention(*parts, coefficients, basis)
        out.square().sum().backward()
        results.append([out, *(part.grad for part in parts)])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, **CLOSE)
