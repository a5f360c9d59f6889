"""The Triton kernels of sparse attention against float64: Triton's interpreter on a CPU, compiled on a GPU."""

import pytest
import torch
from torch import Tensor

from tests.kernels.triton.closeness import DEVICES, drawn, require_close, sizes_in_types
from vitslim.kernels.key_bits import bits_of_keys, packed_bits
from vitslim.kernels.sparse_attention import each_query, kept_mask, tile_count

pytest.importorskip("triton")
from vitslim.kernels.triton import bit_attention, bit_attention_backward, tile_attention
from vitslim.kernels.triton.tuning import Blocks

SCALE = 0.3
# Rounded weights meet rounded values, and rounded score gradients meet rounded keys.
ROUNDINGS = 4.0
VISITS = [
    Blocks(32, 32, 4, 1, listed=False),
    Blocks(32, 128, 4, 1, listed=True),
    pytest.param(Blocks(16, 64, 4, 2, listed=True), marks=pytest.mark.slow),
]


def operands(tokens: int, width: int, dtype: torch.dtype, device: str, value_width: int | None = None) -> list[Tensor]:
    """Queries, keys, values and an output gradient, as they lie in a joined projection: tokens before heads."""
    widths = (width, width, value_width or width, value_width or width)
    drawings = [drawn(1, tokens, 2, each, dtype=dtype, device=device, seed=seed) for seed, each in enumerate(widths)]
    return [part.transpose(1, 2) for part in drawings]


def random_mask(tokens: int, tile: int, prefix: int, device: str, density: float = 0.3) -> Tensor:
    """Which keys each tile of queries sees; every query something."""
    tiles = tile_count(tokens - prefix, tile)
    mask = torch.rand(1, 2, tiles, tokens, generator=torch.Generator().manual_seed(7)) < density
    mask[..., 0] = True
    return mask.to(device)


def exact(query: Tensor, key: Tensor, value: Tensor, grad: Tensor, seen: Tensor) -> list[Tensor]:
    """Output, log-sum-exp and gradients in float64, from the same rounded operands."""
    parts = [part.double().cpu().requires_grad_() for part in (query, key, value)]
    scores = ((parts[0] * SCALE) @ parts[1].transpose(-2, -1)).masked_fill(~seen.cpu(), float("-inf"))
    mixed = scores.softmax(dim=-1).nan_to_num() @ parts[2]
    grads = torch.autograd.grad(mixed, parts, grad.double().cpu())
    return [mixed.detach(), scores.logsumexp(dim=-1).detach(), *grads]


def by_bits(query, key, value, grad, bits, tile, prefix, blocks=None) -> list[Tensor]:
    mixed, lse = bit_attention.attend(query, key, value, bits, tile, prefix, SCALE, blocks)
    grads = bit_attention_backward.gradients(grad, query, key, value, bits, mixed, lse, tile, prefix, SCALE, blocks)
    return [mixed, lse, *grads]


def require_all_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        require_close(one, other, roundings=ROUNDINGS)


@pytest.mark.parametrize(("size", "dtype", "device"), sizes_in_types([(37, 16, 1, 1), (65, 24, 5, 0), (33, 48, 1, 5)]))
def test_bits_forward_and_backward(size: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    tokens, width, tile, prefix = size
    parts, mask = operands(tokens, width, dtype, device), random_mask(tokens, tile, prefix, device)
    found = by_bits(*parts, packed_bits(mask), tile, prefix)
    require_all_close(found, exact(*parts, each_query(mask, tokens, tile, prefix)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("blocks", VISITS)
def test_all_block_sizes_give_the_same_and_blocks_that_nobody_sees_are_no_loss(blocks: Blocks, device: str) -> None:
    tokens, prefix = 131, 1
    parts = operands(tokens, 16, torch.float32, device, value_width=20)
    mask = random_mask(tokens, 1, prefix, device)
    # Keys that no patch query sees, and queries that see only the last keys.
    mask[..., 1:80] = False
    mask[:, :, 40:] = False
    mask[:, :, 40:, 128:] = True
    found = by_bits(*parts, packed_bits(mask), 1, prefix, blocks)
    require_all_close(found, exact(*parts, each_query(mask, tokens, 1, prefix)))


@pytest.mark.parametrize("device", DEVICES)
def test_only_live_blocks_are_visited(device: str) -> None:
    mask = torch.zeros(1, 1, 128, 128, dtype=torch.bool, device=device)
    mask[..., :32, 64:96] = True
    mask[..., 100, 3] = True
    blocks = Blocks(32, 32, 4, 1, listed=True)
    lists, counts = bit_attention.live_blocks(packed_bits(mask), 128, 1, 0, blocks, of_queries=True)
    assert counts.tolist() == [1, 0, 0, 1]
    assert [lists[0, 0].item(), lists[3, 0].item()] == [2, 0]
    lists, counts = bit_attention.live_blocks(packed_bits(mask), 128, 1, 0, blocks, of_queries=False)
    assert counts.tolist() == [1, 0, 1, 0]
    assert [lists[0, 0].item(), lists[2, 0].item()] == [3, 0]


@pytest.mark.parametrize("device", DEVICES)
def test_a_query_without_keys_gets_zeros_and_no_gradient(device: str) -> None:
    parts, mask = operands(40, 16, torch.float32, device), random_mask(40, 1, 0, device)
    mask[:, :, 3:5] = False
    mixed, lse, *grads = by_bits(*parts, packed_bits(mask), 1, 0)
    expected = exact(*parts, mask)
    assert torch.equal(mixed[:, :, 3:5], torch.zeros_like(mixed[:, :, 3:5]))
    assert torch.equal(grads[0][:, :, 3:5], torch.zeros_like(grads[0][:, :, 3:5]))
    assert lse[:, :, 3:5].eq(float("-inf")).all()
    require_all_close([mixed, *grads[1:]], [expected[0], *expected[3:]])


@pytest.mark.parametrize(
    ("size", "dtype", "device"), sizes_in_types([(65, 24, 16, 1, 17), (70, 16, 20, 0, 33), (37, 48, 40, 5, 9)])
)
def test_shared_indices(size: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    tokens, width, tile, prefix, keys = size
    query, key, value, grad = operands(tokens, width, dtype, device)
    scores = torch.rand(1, 2, tile_count(tokens - prefix, tile), tokens, generator=torch.Generator().manual_seed(3))
    kept = scores.topk(keys, dim=-1).indices.to(device)
    mixed, lse = tile_attention.attend(query, key, value, kept, tile, prefix, SCALE)
    bits = bits_of_keys(kept, tokens)
    grads = bit_attention_backward.gradients(grad, query, key, value, bits, mixed, lse, tile, prefix, SCALE)
    expected = exact(query, key, value, grad, kept_mask(kept, tokens, tile, prefix))
    require_all_close([mixed, lse, *grads], expected)


@pytest.mark.parametrize("device", DEVICES)
def test_tiles_without_keys_give_zeros(device: str) -> None:
    query, key, value, _ = operands(40, 16, torch.float32, device)
    kept = torch.empty(1, 2, 3, 0, dtype=torch.int64, device=device)
    mixed, lse = tile_attention.attend(query, key, value, kept, 16, 1, SCALE)
    assert torch.equal(mixed[:, :, 1:], torch.zeros_like(mixed[:, :, 1:]))
    assert lse[:, :, 1:].eq(float("-inf")).all()
    assert lse[:, :, :1].isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
def test_all_keys_kept_is_dense_attention(device: str) -> None:
    query, key, value, _ = operands(45, 16, torch.float32, device)
    dense = torch.nn.functional.scaled_dot_product_attention(
        *(part.double() for part in (query, key, value)), scale=SCALE
    )
    everything = torch.ones(1, 2, 44, 45, dtype=torch.bool, device=device)
    require_close(bit_attention.attend(query, key, value, packed_bits(everything), 1, 1, SCALE)[0], dense)
    kept = torch.arange(45, device=device).expand(1, 2, 3, -1)
    require_close(tile_attention.attend(query, key, value, kept, 16, 1, SCALE)[0], dense)


@pytest.mark.parametrize("device", DEVICES)
def test_parts_of_a_joined_projection_are_read_where_they_lie(device: str) -> None:
    joined = drawn(2, 33, 3, 2, 16, dtype=torch.float32, device=device).permute(2, 0, 3, 1, 4)
    kept = torch.arange(9, device=device).expand(2, 2, 2, -1)
    there = tile_attention.attend(*joined.unbind(0), kept, 16, 1, SCALE)[0]
    apart = tile_attention.attend(*(part.contiguous() for part in joined.unbind(0)), kept, 16, 1, SCALE)[0]
    assert torch.equal(there, apart)


@pytest.mark.parametrize("device", DEVICES)
def test_bits_outputs_and_sums_may_lie_in_any_order(device: str) -> None:
    query, key, value, grad = operands(37, 16, torch.float32, device)
    bits = packed_bits(random_mask(37, 1, 1, device))
    expected = by_bits(query, key, value, grad, bits, 1, 1)
    turned = bits.transpose(2, 3).contiguous().transpose(2, 3)
    mixed, lse = bit_attention.attend(query, key, value, turned, 1, 1, SCALE)
    out, sums = (part.transpose(-2, -1).contiguous().transpose(-2, -1) for part in (mixed, lse))
    grads = bit_attention_backward.gradients(grad, query, key, value, turned, out, sums, 1, 1, SCALE)
    assert all(map(torch.equal, [mixed, lse, *grads], expected))


@pytest.mark.parametrize("device", DEVICES)
def test_large_scores_do_not_overflow(device: str) -> None:
    query, key, value, grad = operands(33, 16, torch.float32, device)
    query, key = 30.0 * query, 30.0 * key
    mask = random_mask(33, 1, 1, device)
    found = by_bits(query, key, value, grad, packed_bits(mask), 1, 1)
    expected = exact(query, key, value, grad, each_query(mask, 33, 1, 1))
    # Scores of some thousands keep three digits behind the point in float32, and so do the weights.
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double().cpu(), other, rtol=1e-2, atol=1e-2 * other.abs().max().item())
