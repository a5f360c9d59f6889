"""The Triton kernel of sparse attention compared with float64: Triton's interpreter on a CPU, compiled on a GPU."""

import pytest
import torch
from torch import Tensor

from tests.kernels.triton.closeness import DEVICES, drawn, require_close, sizes_in_types
from vitslim.kernels.sparse_attention import masked_attention, tile_count

pytest.importorskip("triton")
from vitslim.kernels.triton import tile_attention

SCALE = 0.3
# Rounded weights meet rounded values.
ROUNDINGS = 4.0


def operands(tokens: int, width: int, dtype: torch.dtype, device: str, value_width: int | None = None) -> list[Tensor]:
    """Queries, keys and values as they lie in a joined projection: tokens before heads."""
    widths = (width, width, value_width or width)
    drawings = [drawn(1, tokens, 2, each, dtype=dtype, device=device, seed=seed) for seed, each in enumerate(widths)]
    return [part.transpose(1, 2) for part in drawings]


def any_keys(tokens: int, tile: int, prefix: int, keys: int, device: str) -> Tensor:
    scores = torch.rand(1, 2, tile_count(tokens - prefix, tile), tokens, generator=torch.Generator().manual_seed(3))
    return scores.topk(keys, dim=-1).indices.to(device)


def exact(query: Tensor, key: Tensor, value: Tensor, kept: Tensor, tile: int, prefix: int) -> Tensor:
    """In float64, from the same rounded operands."""
    parts = [part.double().cpu() for part in (query, key, value)]
    return masked_attention(*parts, kept.cpu(), None, tile, prefix, SCALE)


@pytest.mark.parametrize(
    ("size", "dtype", "device"),
    # Of tokens, head widths, tile, prefix, keys: more than a block of queries and of keys, an odd rest, padded widths.
    sizes_in_types(
        [(65, 24, 24, 16, 1, 17), (70, 16, 20, 20, 0, 33), (150, 48, 48, 70, 5, 131)], [(1025, 128, 128, 64, 1, 256)]
    ),
)
def test_each_query_reads_the_keys_of_its_tile(size: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    tokens, width, value_width, tile, prefix, keys = size
    parts = operands(tokens, width, dtype, device, value_width)
    kept = any_keys(tokens, tile, prefix, keys, device)
    found = tile_attention.attend(*parts, kept, tile, prefix, SCALE)
    require_close(found, exact(*parts, kept, tile, prefix), roundings=ROUNDINGS)


@pytest.mark.parametrize("device", DEVICES)
def test_tiles_without_keys_give_zeros(device: str) -> None:
    parts = operands(40, 16, torch.float32, device)
    kept = torch.empty(1, 2, 3, 0, dtype=torch.int64, device=device)
    mixed = tile_attention.attend(*parts, kept, 16, 1, SCALE)
    assert torch.equal(mixed[:, :, 1:], torch.zeros_like(mixed[:, :, 1:]))
    assert mixed[:, :, :1].any()


@pytest.mark.parametrize("device", DEVICES)
def test_all_keys_kept_is_dense_attention(device: str) -> None:
    parts = operands(45, 16, torch.float32, device)
    dense = torch.nn.functional.scaled_dot_product_attention(*(part.double() for part in parts), scale=SCALE)
    kept = torch.arange(45, device=device).expand(1, 2, 3, -1)
    require_close(tile_attention.attend(*parts, kept, 16, 1, SCALE), dense)


@pytest.mark.parametrize("device", DEVICES)
def test_parts_of_a_joined_projection_are_read_where_they_lie(device: str) -> None:
    joined = drawn(2, 33, 3, 2, 16, dtype=torch.float32, device=device).permute(2, 0, 3, 1, 4)
    kept = torch.arange(9, device=device).expand(2, 2, 2, -1)
    there = tile_attention.attend(*joined.unbind(0), kept, 16, 1, SCALE)
    apart = tile_attention.attend(*(part.contiguous() for part in joined.unbind(0)), kept, 16, 1, SCALE)
    assert torch.equal(there, apart)


@pytest.mark.parametrize("device", DEVICES)
def test_large_scores_do_not_overflow(device: str) -> None:
    query, key, value = operands(33, 16, torch.float32, device)
    query, key, kept = 30.0 * query, 30.0 * key, any_keys(33, 16, 1, 9, device)
    found = tile_attention.attend(query, key, value, kept, 16, 1, SCALE)
    # Scores of some thousands keep three digits behind the point in float32, and so do the weights.
    torch.testing.assert_close(found.double().cpu(), exact(query, key, value, kept, 16, 1), rtol=1e-2, atol=1e-2)
