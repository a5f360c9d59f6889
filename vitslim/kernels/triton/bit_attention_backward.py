"""The gradient of bit-masked attention, from the saved log-sum-exp of each row.

Source: Dao et al., "FlashAttention", arXiv 2205.14135, appendix B.2; two kernels instead of one, so that no two
programs add to the same memory, and two runs give the same bits.

    P  = exp(scale Q Kᵀ - lse) where seen      D = rowsum(dO ∘ O)
    dV = Pᵀ dO      dS = P ∘ (dO Vᵀ - D)       dQ = scale dS K      dK = scale dSᵀ Q
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitslim.kernels.triton.bit_attention import live_blocks
from vitslim.kernels.triton.key_gradient import key_gradient_kernel
from vitslim.kernels.triton.launching import dot_precision, launch, on_device_of, padded, rows_of, strides_of
from vitslim.kernels.triton.pieces import LOG2_E, dot, sees
from vitslim.kernels.triton.tuning import Blocks, blocks_for


@triton.jit
@no_type_check
def row_products_kernel(
    grad,
    out,
    products,
    grad_image,
    grad_head,
    grad_row,
    out_image,
    out_head,
    out_row,
    heads,
    tokens,
    VALUE_WIDTH: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """D: of each row, the product of the output and its gradient."""
    blocks = tl.cdiv(tokens, BLOCK_Q)
    plane = (tl.program_id(0) // blocks).to(tl.int64)
    image, head = plane // heads, plane % heads
    row, f = tl.program_id(0) % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q), tl.arange(0, BLOCK_F)
    inside = (row < tokens)[:, None] & (f < VALUE_WIDTH)[None, :]
    grad += image * grad_image + head * grad_head
    out += image * out_image + head * out_head
    grads = tl.load(grad + row[:, None] * grad_row + f[None, :], mask=inside, other=0.0).to(tl.float32)
    mixed = tl.load(out + row[:, None] * out_row + f[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(products + plane * tokens + row, tl.sum(grads * mixed, axis=1), mask=row < tokens)


@triton.jit
@no_type_check
def query_gradient_kernel(
    grad,
    query,
    key,
    value,
    bits,
    lists,
    counts,
    lse,
    products,
    grad_query,
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
    grad_query_image,
    grad_query_head,
    grad_query_row,
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
    """Gives dQ of one block of queries, over the key blocks that they see."""
    query_blocks, key_blocks = tl.cdiv(tokens, BLOCK_Q), tl.cdiv(tokens, BLOCK_K)
    plane = (tl.program_id(0) // query_blocks).to(tl.int64)
    image, head = plane // heads, plane % heads
    grad += image * grad_image + head * grad_head
    query += image * query_image + head * query_head
    key += image * key_image + head * key_head
    value += image * value_image + head * value_head
    grad_query += image * grad_query_image + head * grad_query_head
    bits += plane * tiles * words
    row = tl.program_id(0) % query_blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    e, f, j = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_F), tl.arange(0, BLOCK_K)
    here = row < tokens
    own = tl.load(query + row[:, None] * query_row + e[None, :], mask=here[:, None] & (e < WIDTH)[None, :], other=0.0)
    own_grad = tl.load(
        grad + row[:, None] * grad_row + f[None, :], mask=here[:, None] & (f < VALUE_WIDTH)[None, :], other=0.0
    )
    level = tl.load(lse + plane * tokens + row, mask=here, other=0.0) * LOG2_E
    product = tl.load(products + plane * tokens + row, mask=here, other=0.0)
    factor = scale * LOG2_E
    nothing = tl.zeros([BLOCK_Q, BLOCK_K], tl.float32)
    total = tl.zeros([BLOCK_Q, BLOCK_E], tl.float32)
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
            key + column[:, None] * key_row + e[None, :], mask=inside[:, None] & (e < WIDTH)[None, :], other=0.0
        )
        values = tl.load(
            value + column[None, :] * value_row + f[:, None],
            mask=inside[None, :] & (f < VALUE_WIDTH)[:, None],
            other=0.0,
        )
        seen = sees(bits, row, block, tokens, words, tile, prefix, BLOCK_K, KEYS_FIRST=False)
        scores = dot(own, tl.trans(keys), nothing, PRECISION) * factor
        # The row of a query that sees nothing has lse = -inf, but nothing seen.
        weights = tl.exp2(tl.where(seen, scores - level[:, None], float("-inf")))
        grad_weights = dot(own_grad, values, nothing, PRECISION)
        grad_scores = weights * (grad_weights - product[:, None])
        total = dot(grad_scores.to(keys.dtype), keys, total, PRECISION)
    tl.store(
        grad_query + row[:, None] * grad_query_row + e[None, :],
        (total * scale).to(grad_query.dtype.element_ty),
        mask=here[:, None] & (e < WIDTH)[None, :],
    )


def gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bits: Tensor,
    out: Tensor,
    lse: Tensor,
    tile: int,
    prefix: int,
    scale: float,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``vitslim::bit_attention_backward``, see ``vitslim.kernels.bit_attention``."""
    images, heads, tokens, width = query.shape
    blocks = blocks or blocks_for("bit_attention_backward", query, value)
    grad, query, key, value, out = (rows_of(part) for part in (grad, query, key, value, out))
    bits, lse = bits.contiguous(), lse.contiguous()
    gradients = [part.new_empty(images, tokens, heads, part.shape[3]).transpose(1, 2) for part in (query, key, value)]
    grad_query, grad_key, grad_value = gradients
    products = torch.empty_like(lse)
    planes = images * heads
    query_programs = planes * triton.cdiv(tokens, blocks.queries)
    key_programs = planes * triton.cdiv(tokens, blocks.keys)
    sizes = {
        "WIDTH": width,
        "VALUE_WIDTH": value.shape[3],
        "BLOCK_E": padded(width),
        "BLOCK_F": padded(value.shape[3]),
        "BLOCK_Q": blocks.queries,
        "BLOCK_K": blocks.keys,
        "LISTED": blocks.listed,
        "PRECISION": dot_precision(query),
        **blocks.options(),
    }
    numbers = (heads, tokens, bits.shape[3], tile, bits.shape[2], prefix, scale)
    parts = (grad, query, key, value)
    with on_device_of(query):
        launch(
            row_products_kernel,
            query_programs,
            grad,
            out,
            products,
            *strides_of(grad, out),
            heads,
            tokens,
            VALUE_WIDTH=value.shape[3],
            BLOCK_F=padded(value.shape[3]),
            BLOCK_Q=blocks.queries,
        )
        seen = live_blocks(bits, tokens, tile, prefix, blocks, of_queries=True)
        launch(
            query_gradient_kernel,
            query_programs,
            *parts,
            bits,
            *seen,
            lse,
            products,
            grad_query,
            *strides_of(*parts, grad_query),
            *numbers,
            **sizes,
        )
        seeing = live_blocks(bits, tokens, tile, prefix, blocks, of_queries=False)
        launch(
            key_gradient_kernel,
            key_programs,
            *parts,
            bits,
            *seeing,
            lse,
            products,
            grad_key,
            grad_value,
            *strides_of(*parts, grad_key, grad_value),
            *numbers,
            **sizes,
        )
    return grad_query, grad_key, grad_value
