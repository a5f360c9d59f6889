import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.kernels import kept_keys, op_macs, sparse_attention, topk
from vitslim.kernels.sparse_attention import kept_mask, tile_count

# Two orders of summation in float32 over rows of unit scale.
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
# bfloat16 keeps 8 bits.
COARSE = {"atol": 3e-2, "rtol": 3e-2}

OPERANDS = {"prefix": 2, "scale": 0.3}
TILES = [1, 4, 5, 15, 100]  # of 15 patch queries: one by one, an odd rest, three even ones, all, more than all


def operands(seed: int = 0, tokens: int = 17, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 3, tokens, 8, generator=generator).to(dtype) for _ in range(3))


def any_keys(tile: int, keys: int = 6, tokens: int = 17, prefix: int = 2, seed: int = 1) -> Tensor:
    """A random key set for each tile, the prefix among them."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(2, 3, tile_count(tokens - prefix, tile), tokens, generator=generator)
    scores[..., :prefix] = 2.0
    return scores.topk(keys, dim=-1).indices


def slow_attention(query, key, value, kept, *, tile, prefix, scale, bias=None) -> Tensor:
    """Row by row, as the definition says."""
    images, heads, tokens, _ = query.shape
    out = torch.zeros(images, heads, tokens, value.shape[-1])
    for b, h, row in itertools.product(range(images), range(heads), range(tokens)):
        columns = torch.arange(tokens) if row < prefix else kept[b, h, (row - prefix) // tile]
        scores = key[b, h, columns] @ query[b, h, row] * scale
        if bias is not None:
            scores = scores + bias.expand(images, heads, tokens, tokens)[b, h, row, columns]
        out[b, h, row] = scores.softmax(0) @ value[b, h, columns]
    return out


def biases() -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.zeros(17, 17).masked_fill(torch.rand(17, 17, generator=generator) < 0.2, float("-inf"))
    hidden[:, :2] = 0.0
    return {
        "none": None,
        "per head": torch.randn(1, 3, 17, 17, generator=generator),
        "for all": torch.randn(17, 17, generator=generator),
        "keys alone": torch.randn(2, 1, 1, 17, generator=generator),
        "hides some": hidden,
    }


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("bias", list(biases()))
def test_the_reference_is_the_definition_row_by_row(tile: int, bias: str) -> None:
    kept, added = any_keys(tile), biases()[bias]
    fast = sparse_attention(*operands(), kept, tile=tile, bias=added, **OPERANDS)
    torch.testing.assert_close(fast, slow_attention(*operands(), kept, tile=tile, bias=added, **OPERANDS), **CLOSE)


@pytest.mark.parametrize("tile", TILES)
def test_all_keys_kept_is_dense_attention(tile: int) -> None:
    query, key, value = operands()
    kept = torch.arange(17).expand(2, 3, tile_count(15, tile), 17)
    dense = F.scaled_dot_product_attention(query, key, value, scale=0.3)
    torch.testing.assert_close(sparse_attention(query, key, value, kept, tile=tile, **OPERANDS), dense, **CLOSE)


@pytest.mark.parametrize("tile", TILES)
def test_the_order_of_the_kept_keys_does_not_matter(tile: int) -> None:
    kept = any_keys(tile)
    there = sparse_attention(*operands(), kept, tile=tile, **OPERANDS)
    back = sparse_attention(*operands(), kept.flip(-1), tile=tile, **OPERANDS)
    torch.testing.assert_close(there, back, **CLOSE)


def test_one_tile_for_all_is_the_same_as_that_key_set_for_every_query() -> None:
    kept = any_keys(15)
    every = kept.expand(-1, -1, 15, -1)
    torch.testing.assert_close(
        sparse_attention(*operands(), kept, tile=15, **OPERANDS),
        sparse_attention(*operands(), every, tile=1, **OPERANDS),
        **CLOSE,
    )


@pytest.mark.parametrize("tile", [1, 4])
def test_a_query_that_sees_no_kept_key_gets_zeros_and_a_finite_gradient(tile: int) -> None:
    query, key, value = (part.requires_grad_() for part in operands())
    bias = torch.zeros(17, 17)
    bias[5] = float("-inf")
    mixed = sparse_attention(query, key, value, any_keys(tile), tile=tile, bias=bias, **OPERANDS)
    assert torch.equal(mixed[:, :, 5], torch.zeros(2, 3, 8))
    mixed.square().sum().backward()
    assert all(part.grad.isfinite().all() for part in (query, key, value))


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("bias", ["none", "per head", "keys alone", "hides some"])
def test_the_gradient_is_that_of_the_slow_form(tile: int, bias: str) -> None:
    weight = torch.randn(2, 3, 17, 8, generator=torch.Generator().manual_seed(5))

    def gradients(attention) -> list[Tensor]:
        parts = [part.requires_grad_() for part in operands()]
        added = None if biases()[bias] is None else biases()[bias].clone().requires_grad_()
        (attention(*parts, any_keys(tile), tile=tile, bias=added, **OPERANDS) * weight).sum().backward()
        return [part.grad for part in (*parts, added) if part is not None]

    for fast, slow in zip(gradients(sparse_attention), gradients(slow_attention), strict=True):
        torch.testing.assert_close(fast, slow, **CLOSE)


@pytest.mark.parametrize("tile", TILES)
def test_half_precision_is_close(tile: int) -> None:
    half = sparse_attention(*operands(dtype=torch.bfloat16), any_keys(tile), tile=tile, **OPERANDS)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(
        half.float(), sparse_attention(*operands(), any_keys(tile), tile=tile, **OPERANDS), **COARSE
    )


def test_queries_and_keys_follow_the_precision_of_the_values() -> None:
    query, key, value = operands()
    assert sparse_attention(query, key, value.bfloat16(), any_keys(1), tile=1, **OPERANDS).dtype == torch.bfloat16


def test_a_wrong_number_of_key_sets_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 key sets for 15 tiles of 1 queries; wanted one each"):
        sparse_attention(*operands(), any_keys(5), tile=1, **OPERANDS)


def test_heads_are_merged_without_a_copy() -> None:
    assert sparse_attention(*operands(), any_keys(4), tile=4, **OPERANDS).transpose(1, 2).is_contiguous()


def choose(tile: int, *, top: int = 3, keys: int = 6, prefix: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coefficients = torch.rand(2, 3, 15, 5, generator=generator)
    basis = torch.rand(5, 15 + prefix, generator=generator)
    kept = kept_keys(coefficients, basis, top=top, keys=keys, tile=tile, prefix=prefix)
    return coefficients, basis, kept


@pytest.mark.parametrize("tile", TILES)
def test_the_kept_keys_have_the_largest_summed_scores(tile: int) -> None:
    coefficients, basis, kept = choose(tile)
    for b, h, t in itertools.product(range(2), range(3), range(tile_count(15, tile))):
        rows = coefficients[b, h, t * tile : (t + 1) * tile].clone()
        for row in rows:
            row[row.argsort()[:2]] = 0.0
        scores = (rows @ basis).sum(0)
        expected = {0, 1, *(2 + scores[2:].topk(4).indices).tolist()}
        assert set(kept[b, h, t].tolist()) == expected


@given(tile=st.integers(1, 20), keys=st.integers(3, 17), prefix=st.sampled_from([0, 1, 2]), top=st.integers(1, 9))
def test_as_many_keys_as_asked_for_nothing_twice_the_prefix_always(tile: int, keys: int, prefix: int, top: int) -> None:
    keys = min(keys, 15 + prefix)
    _, _, kept = choose(tile, top=top, keys=keys, prefix=prefix)
    assert kept.shape == (2, 3, tile_count(15, tile), keys)
    ordered = kept.sort(dim=-1).values
    assert (ordered.diff(dim=-1) > 0).all()
    assert torch.equal(ordered[..., :prefix], torch.arange(prefix).expand(*kept.shape[:3], -1))
    assert kept_mask(kept, 15 + prefix, tile, prefix)[:, :, :prefix].all()


def test_equal_scores_go_to_the_lower_index() -> None:
    kept = kept_keys(torch.ones(1, 1, 3, 2), torch.ones(2, 9), top=2, keys=5, tile=1, prefix=1)
    assert torch.equal(kept, torch.arange(5).expand(1, 1, 3, 5))


def test_a_basis_of_its_own_for_each_image() -> None:
    coefficients, basis, kept = choose(4)
    flipped = torch.stack([basis, torch.cat([basis[:, :2], basis[:, 2:].flip(-1)], dim=-1)])
    mixed = kept_keys(coefficients, flipped, top=3, keys=6, tile=4, prefix=2)
    assert torch.equal(mixed[0], kept[0])
    mirrored = torch.where(kept[1] < 2, kept[1], 18 - kept[1])
    assert torch.equal(mixed[1].sort(-1).values, mirrored.sort(-1).values)


def test_the_largest_coefficients_stay_and_equals_are_not_torn_apart() -> None:
    row = torch.tensor([0.1, 0.4, 0.2, 0.3])
    assert torch.equal(topk(row, 2), torch.tensor([0.0, 0.4, 0.0, 0.3]))
    assert torch.equal(topk(torch.ones(4), 2), torch.ones(4))
    assert topk(row, 4) is row


def test_the_cost_is_that_of_the_kept_pairs() -> None:
    attention, choice = (op_macs()[op] for op in (torch.ops.vitslim.sparse_attention, torch.ops.vitslim.kept_keys))
    shape = (2, 6, 197, 64)
    # 1 class row over 197 keys and 196 rows over 50, each pair once in Q Kᵀ and once in A V.
    assert attention(shape, shape, shape, (2, 6, 196, 50), None, 1, 1, 0.125) == 2 * 6 * (197 + 196 * 50) * 128
    assert choice((2, 6, 196, 32), (32, 197), 8, 50, 1, 1) == 2 * 6 * 196 * 8 * 197
    # Summed over a tile of 64 rows, all 32 coefficients may count.
    assert choice((2, 6, 196, 32), (32, 197), 8, 50, 64, 1) == 2 * 6 * 4 * 32 * 197


@pytest.mark.compiled
@pytest.mark.parametrize("tile", [1, 4])
def test_the_compiler_takes_forward_and_backward_whole(tile: int) -> None:
    def mixed(query: Tensor, key: Tensor, value: Tensor, coefficients: Tensor, basis: Tensor) -> Tensor:
        kept = kept_keys(coefficients, basis, top=3, keys=6, tile=tile, prefix=2)
        return sparse_attention(query, key, value, kept, tile=tile, **OPERANDS)

    coefficients, basis, _ = choose(tile)
    results = []
    for attention in (mixed, torch.compile(mixed, fullgraph=True)):
        parts = [part.requires_grad_() for part in operands()]
        out = attention(*parts, coefficients, basis)
        out.square().sum().backward()
        results.append([out, *(part.grad for part in parts)])
    for plain, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, plain, **CLOSE)
