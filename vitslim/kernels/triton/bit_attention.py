"""Flash attention in which every query has a bit for each key.

Sources: Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", arXiv 2307.08691, for
the walk over key blocks with a running maximum and sum; the bits and the skipping of blocks are ours.

A program owns a block of queries. Where a list of live blocks is worth making, it visits only the key blocks that one
of its queries sees; a list rather than a branch, so that the loads of the next block can start early.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitslim.kernels.triton.launching import dot_precision, launch, on_device_of, padded, rows_of, strides_of
from vitslim.kernels.triton.pieces import LOG2_E, dot, live_blocks_kernel, sees, softmax_end, softmax_step
from vitslim.kernels.triton.tuning import Blocks, blocks_for


@triton.jit
@no_type_check
def bit_attention_kernel(
    query,
    key,
    value,
    bits,
    lists,
    counts,
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
    words,
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
    LISTED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of queries against the keys that they see."""
    query_blocks, key_blocks = tl.cdiv(tokens, BLOCK_Q), tl.cdiv(tokens, BLOCK_K)
    plane = (tl.program_id(0) // query_blocks).to(tl.int64)
    image, head = plane // heads, plane % heads
    query += image * query_image + head * query_head
    key += image * key_image + head * key_head
    value += image * value_image + head * value_head
    out += image * out_image + head * out_head
    bits += plane * tiles * words
    row = tl.program_id(0) % query_blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    e, f, j = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_K)
    own = tl.load(
        query + row[:, None] * query_row + e[None, :], mask=(row < tokens)[:, None] & (e < WIDTH)[None, :], other=0.0
    )
    # In powers of two, which the hardware has.
    factor = scale * LOG2_E
    most = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    mixed = tl.zeros([BLOCK_Q, BLOCK_F], tl.float32)
    if LISTED:
        live = tl.load(counts + tl.program_id(0))
        lists += tl.program_id(0).to(tl.int64) * key_blocks
    else:
        live = key_blocks
    for visit in range(live):
        if LISTED:
            block = tl.load(lists + visit)
        else:
            block = visit
        column = block * BLOCK_K + j
        inside = column < tokens
        keys = tl.load(
            key + column[None, :] * key_row + e[:, None], mask=inside[None, :] & (e < WIDTH)[:, None], other=0.0
        )
        scores = dot(own, keys, tl.zeros([BLOCK_Q, BLOCK_K], tl.float32), PRECISION) * factor
        seen = sees(bits, row, block, tokens, words, tile, prefix, BLOCK_K, KEYS_FIRST=False)
        scores = tl.where(seen, scores, float("-inf"))
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
        mask=(row < tokens)[:, None] & (f < VALUE_WIDTH)[None, :],
    )
    tl.store(lse + plane * tokens + row, sums, mask=row < tokens)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bits: Tensor,
    tile: int,
    prefix: int,
    scale: float,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor]:
    """``vitslim::bit_attention``, see ``vitslim.kernels.bit_attention``."""
    images, heads, tokens, width = query.shape
    blocks = blocks or blocks_for("bit_attention", query, value)
    query, key, value, bits = (rows_of(part) for part in (query, key, value, bits.contiguous()))
    out = value.new_empty(images, tokens, heads, value.shape[3]).transpose(1, 2)
    lse = query.new_empty(images, heads, tokens, dtype=torch.float32)
    with on_device_of(query):
        lists, counts = live_blocks(bits, tokens, tile, prefix, blocks, of_queries=True)
        launch(
            bit_attention_kernel,
            images * heads * triton.cdiv(tokens, blocks.queries),
            query,
            key,
            value,
            bits,
            lists,
            counts,
            out,
            lse,
            *strides_of(query, key, value, out),
            heads,
            tokens,
            bits.shape[3],
            tile,
            bits.shape[2],
            prefix,
            scale,
            WIDTH=width,
            VALUE_WIDTH=value.shape[3],
            BLOCK_E=padded(width),
            BLOCK_F=padded(value.shape[3]),
            BLOCK_Q=blocks.queries,
            BLOCK_K=blocks.keys,
            LISTED=blocks.listed,
            PRECISION=dot_precision(query),
            **blocks.options(),
        )
    return out, lse


def live_blocks(
    bits: Tensor, tokens: int, tile: int, prefix: int, blocks: Blocks, *, of_queries: bool
) -> tuple[Tensor, Tensor]:
    """Lists of the blocks to visit and their lengths; empty where ``blocks`` says to visit all."""
    images, heads, tiles, words = bits.shape
    if not blocks.listed:
        nothing = bits.new_empty(0)
        return nothing, nothing
    mine, others = triton.cdiv(tokens, blocks.queries), triton.cdiv(tokens, blocks.keys)
    mine, others = (mine, others) if of_queries else (others, mine)
    lists = bits.new_empty(images * heads * mine, others)
    counts = bits.new_empty(images * heads * mine)
    launch(
        live_blocks_kernel,
        images * heads * mine,
        bits,
        lists,
        counts,
        tokens,
        words,
        tile,
        tiles,
        prefix,
        BLOCK_Q=blocks.queries,
        BLOCK_K=blocks.keys,
        OF_QUERIES=of_queries,
        num_warps=1,
    )
    return lists, counts
