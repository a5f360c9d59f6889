"""The gradient of keys and values under bit-masked attention; formulas in ``bit_attention_backward``."""

from typing import no_type_check

import triton
import triton.language as tl

from vitslim.kernels.triton.pieces import LOG2_E, dot, sees


@triton.jit
@no_type_check
def key_gradient_kernel(
    grad,
    query,
    key,
    value,
    bits,
    lists,
    counts,
    lse,
    products,
    grad_key,
    grad_value,
    grad_image,
    grad_head,
    grad_row,
    query_image,
    query_head,
    query_row,
    key_image,
    key_head,
    key_row,
    value_image,
    value_head,
    value_row,
    grad_key_image,
    grad_key_head,
    grad_key_row,
    grad_value_image,
    grad_value_head,
    grad_value_row,
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
    """Gives dK and dV of one block of keys, over the query blocks that see any of it; scores stand transposed here."""
    query_blocks, key_blocks = tl.cdiv(tokens, BLOCK_Q), tl.cdiv(tokens, BLOCK_K)
    plane = (tl.program_id(0) // key_blocks).to(tl.int64)
    image, head = plane // heads, plane % heads
    key_block = tl.program_id(0) % key_blocks
    grad += image * grad_image + head * grad_head
    query += image * query_image + head * query_head
    key += image * key_image + head * key_head
    value += image * value_image + head * value_head
    grad_key += image * grad_key_image + head * grad_key_head
    grad_value += image * grad_value_image + head * grad_value_head
    bits += plane * tiles * words
    j = tl.arange(0, BLOCK_K)
    column = key_block * BLOCK_K + j
    e, f = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_F)
    inside = column < tokens
    key_cells = inside[:, None] & (e < WIDTH)[None, :]
    value_cells = inside[:, None] & (f < VALUE_WIDTH)[None, :]
    keys = tl.load(key + column[:, None] * key_row + e[None, :], mask=key_cells, other=0.0)
    values = tl.load(value + column[:, None] * value_row + f[None, :], mask=value_cells, other=0.0)
    factor = scale * LOG2_E
    nothing = tl.zeros([BLOCK_K, BLOCK_Q], tl.float32)
    of_keys = tl.zeros([BLOCK_K, BLOCK_E], tl.float32)
    of_values = tl.zeros([BLOCK_K, BLOCK_F], tl.float32)
    if LISTED:
        live = tl.load(counts + tl.program_id(0))
        lists += tl.program_id(0).to(tl.int64) * query_blocks
    else:
        live = query_blocks
    for visit in range(live):
        if LISTED:
            block = tl.load(lists + visit)
        else:
            block = visit
        row = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
        here = row < tokens
        queries = tl.load(
            query + row[:, None] * query_row + e[None, :], mask=here[:, None] & (e < WIDTH)[None, :], other=0.0
        )
        grads = tl.load(
            grad + row[:, None] * grad_row + f[None, :], mask=here[:, None] & (f < VALUE_WIDTH)[None, :], other=0.0
        )
        level = tl.load(lse + plane * tokens + row, mask=here, other=0.0) * LOG2_E
        product = tl.load(products + plane * tokens + row, mask=here, other=0.0)
        seen = sees(bits, row, key_block, tokens, words, tile, prefix, BLOCK_K, KEYS_FIRST=True)
        scores = dot(keys, tl.trans(queries), nothing, PRECISION) * factor
        weights = tl.exp2(tl.where(seen, scores - level[None, :], float("-inf")))
        of_values = dot(weights.to(grads.dtype), grads, of_values, PRECISION)
        grad_weights = dot(values, tl.trans(grads), nothing, PRECISION)
        grad_scores = weights * (grad_weights - product[None, :])
        of_keys = dot(grad_scores.to(queries.dtype), queries, of_keys, PRECISION)
    tl.store(
        grad_key + column[:, None] * grad_key_row + e[None, :],
        (of_keys * scale).to(grad_key.dtype.element_ty),
        mask=key_cells,
    )
    tl.store(
        grad_value + column[:, None] * grad_value_row + f[None, :],
        of_values.to(grad_value.dtype.element_ty),
        mask=value_cells,
    )
