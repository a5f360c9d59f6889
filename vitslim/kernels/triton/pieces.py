"""What the attention kernels share: products, the running softmax, who sees which keys, which blocks see none."""

from typing import no_type_check

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
@no_type_check
def dot(first, second, total, PRECISION: tl.constexpr):
    """``total`` plus the matrix product; see ``launching.dot_precision``."""
    if PRECISION == "widened":
        return tl.dot(first.to(tl.float32), second.to(tl.float32), total)
    return tl.dot(first, second, total, input_precision=PRECISION)


@triton.jit
@no_type_check
def softmax_step(scores, most, total):
    """Weights of one more block of scores, in powers of two; what so far was summed shrinks by the second result."""
    new_most = tl.maximum(most, tl.max(scores, axis=1))
    # Where nothing was seen so far, -inf - -inf would be no number.
    finite = tl.where(new_most == float("-inf"), 0.0, new_most)
    weights = tl.exp2(scores - finite[:, None])
    shrink = tl.exp2(most - finite)
    return weights, shrink, new_most, total * shrink + tl.sum(weights, axis=1)


@triton.jit
@no_type_check
def softmax_end(mixed, most, total):
    """The mixed values of each row, and the logarithm of its sum of exponentials."""
    # A query that sees nothing gets zeros, and its sum of exponentials is nothing: -inf.
    total = tl.where(total == 0.0, 1.0, total)
    return mixed / total[:, None], (most + tl.log2(total)) * LN_2


@triton.jit
@no_type_check
def words_of(bits, row, word, tokens, words, tile, prefix):
    """One word of 32 keys for each query; a prefix query sees every key, a row behind the last one none."""
    inside = (row >= prefix) & (row < tl.where(word < words, tokens, prefix))
    own = tl.load(bits + (row - prefix) // tile * words + word, mask=inside, other=0)
    return tl.where(row < prefix, -1, own)


@triton.jit
@no_type_check
def sees(bits, row, block, tokens, words, tile, prefix, BLOCK_K: tl.constexpr, KEYS_FIRST: tl.constexpr):
    """Which query (row) sees which key (column) of a key block; transposed where the keys come first."""
    j = tl.arange(0, BLOCK_K)
    # A thread holds few rows and many columns: one load a row for 32 columns, and no exchange between threads.
    axis: tl.constexpr = 0 if KEYS_FIRST else 1
    word = tl.expand_dims(words_of(bits, row, block * (BLOCK_K // 32), tokens, words, tile, prefix), axis)
    for part in tl.static_range(1, BLOCK_K // 32):
        later = words_of(bits, row, block * (BLOCK_K // 32) + part, tokens, words, tile, prefix)
        word = tl.where(tl.expand_dims(j // 32 == part, 1 - axis), tl.expand_dims(later, axis), word)
    # Prefix queries see all bits, also those behind the last token.
    bit = tl.where(block * BLOCK_K + j < tokens, 1 << (j % 32), 0)
    return (word & tl.expand_dims(bit, 1 - axis)) != 0


@triton.jit
@no_type_check
def live_blocks_kernel(
    bits,
    lists,
    counts,
    tokens,
    words,
    tile,
    tiles,
    prefix,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OF_QUERIES: tl.constexpr,
):
    """For each block of queries the key blocks that any of them sees; or, for each key block, who sees any of it."""
    key_blocks, query_blocks = tl.cdiv(tokens, BLOCK_K), tl.cdiv(tokens, BLOCK_Q)
    if OF_QUERIES:
        mine, others = query_blocks, key_blocks
    else:
        mine, others = key_blocks, query_blocks
    plane = (tl.program_id(0) // mine).to(tl.int64)
    block = tl.program_id(0) % mine
    bits += plane * tiles * words
    lists += tl.program_id(0).to(tl.int64) * others
    count = 0
    for other in range(others):
        if OF_QUERIES:
            query_block, key_block = block, other
        else:
            query_block, key_block = other, block
        row = query_block * BLOCK_Q + tl.arange(0, BLOCK_Q)
        seen = words_of(bits, row, key_block * (BLOCK_K // 32), tokens, words, tile, prefix)
        for part in tl.static_range(1, BLOCK_K // 32):
            seen |= words_of(bits, row, key_block * (BLOCK_K // 32) + part, tokens, words, tile, prefix)
        live = tl.max((seen != 0).to(tl.int32), axis=0)
        tl.store(lists + count, other, mask=live != 0)
        count += live
    tl.store(counts + tl.program_id(0), count)
