"""Flash attention in which the queries of a tile share the indices of their keys.

A program owns queries of one tile. Rows of K and V are gathered by index straight into the blocks that tensor cores
multiply, so a tile costs what dense attention over as many keys would, and no mask is needed. Prefix queries, which
read every key, have programs of their own, the first ones of each head: they run longest.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitslim.kernels.triton.launching import dot_precision, launch, on_device_of, padded, rows_of, strides_of
from vitslim.kernels.triton.pieces import LOG2_E, dot, softmax_end, softmax_step
from vitslim.kernels.triton.tuning import Blocks, blocks_for


@triton.jit
@no_type_check
def tile_attention_kernel(
    query,
    key,
    value,
    kept,
    out,
    lse,
    query_image,
    query_head,
    query_row,
    key_image,
    key_head,
    key_row,
    value_image,
    value_head,
    value_row,
    out_image,
    out_head,
    out_row,
    heads,
    tokens,
    keys_kept,
    tile,
    tiles,
    prefix,
    scale,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some queries of one tile, or of the prefix, against the keys they share."""
    prefix_blocks, blocks_of_tile = tl.cdiv(prefix, BLOCK_Q), tl.cdiv(tile, BLOCK_Q)
    programs = prefix_blocks + tiles * blocks_of_tile
    plane = (tl.program_id(0) // programs).to(tl.int64)
    image, head = plane // heads, plane % heads
    program = tl.program_id(0) % programs
    is_prefix = program < prefix_blocks
    own_tile = tl.maximum(program - prefix_blocks, 0) // blocks_of_tile
    part_of_tile = tl.maximum(program - prefix_blocks, 0) % blocks_of_tile
    first = tl.where(is_prefix, program * BLOCK_Q, prefix + own_tile * tile + part_of_tile * BLOCK_Q)
    behind = tl.where(is_prefix, prefix, tl.minimum(prefix + (own_tile + 1) * tile, tokens))
    count = tl.where(is_prefix, tokens, keys_kept)
    query += image * query_image + head * query_head
    key += image * key_image + head * key_head
    value += image * value_image + head * value_head
    out += image * out_image + head * out_head
    kept += (plane * tiles + own_tile) * keys_kept
    row = first + tl.arange(0, BLOCK_Q)
    e, f, j = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_K)
    here = row < behind
    own = tl.load(query + row[:, None] * query_row + e[None, :], mask=here[:, None] & (e < WIDTH)[None, :], other=0.0)
    # In powers of two, which the hardware has.
    factor = scale * LOG2_E
    most = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    mixed = tl.zeros([BLOCK_Q, BLOCK_F], tl.float32)
    for start in range(0, count, BLOCK_K):
        place = start + j
        inside = place < count
        chosen = tl.load(kept + place, mask=place < tl.where(is_prefix, 0, count), other=0).to(tl.int32)
        column = tl.where(is_prefix, place, chosen)
        keys = tl.load(
            key + column[None, :] * key_row + e[:, None], mask=inside[None, :] & (e < WIDTH)[:, None], other=0.0
        )
        scores = dot(own, keys, tl.zeros([BLOCK_Q, BLOCK_K], tl.float32), PRECISION) * factor
        scores = tl.where(inside[None, :], scores, float("-inf"))
        weights, shrink, most, total = softmax_step(scores, most, total)
        values = tl.load(
            value + column[:, None] * value_row + f[None, :],
            mask=inside[:, None] & (f < VALUE_WIDTH)[None, :],
            other=0.0,
        )
        mixed = dot(weights.to(values.dtype), values, mixed * shrink[:, None], PRECISION)
    mixed, sums = softmax_end(mixed, most, total)
    tl.store(
        out + row[:, None] * out_row + f[None, :],
        mixed.to(out.dtype.element_ty),
        mask=here[:, None] & (f < VALUE_WIDTH)[None, :],
    )
    tl.store(lse + plane * tokens + row, sums, mask=here)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kept: Tensor,
    tile: int,
    prefix: int,
    scale: float,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor]:
    """``vitslim::tile_attention``, see ``vitslim.kernels.bit_attention``."""
    images, heads, tokens, width = query.shape
    blocks = blocks or blocks_for("tile_attention", query, value)
    query, key, value, kept = (rows_of(part) for part in (query, key, value, kept.contiguous()))
    out = value.new_empty(images, tokens, heads, value.shape[3]).transpose(1, 2)
    lse = query.new_empty(images, heads, tokens, dtype=torch.float32)
    # A tile of 16 queries would leave three quarters of a block of 64 empty.
    block_q = min(blocks.queries, padded(tile))
    programs = triton.cdiv(prefix, block_q) + kept.shape[2] * triton.cdiv(tile, block_q)
    with on_device_of(query):
        launch(
            tile_attention_kernel,
            images * heads * programs,
            query,
            key,
            value,
            kept,
            out,
            lse,
            *strides_of(query, key, value, out),
            heads,
            tokens,
            kept.shape[3],
            tile,
            kept.shape[2],
            prefix,
            scale,
            WIDTH=width,
            VALUE_WIDTH=value.shape[3],
            BLOCK_E=padded(width),
            BLOCK_F=padded(value.shape[3]),
            BLOCK_Q=block_q,
            BLOCK_K=blocks.keys,
            PRECISION=dot_precision(query),
            **blocks.options(),
        )
    return out, lse
