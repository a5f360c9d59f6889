"""Choosing keys in one kernel: coefficients times basis, the k largest of each row, and their bits or indices.

The scores of a row stay in registers. Its k-th largest is found without a sort, by bisection on the bits of the floats,
which for floats that are not negative stand in the same order. Equals go to the lower index, exactly as in
``vitslim::kept_keys``. The sums run in another order than torch's, in float32 on tensor cores in three passes: keys
whose scores differ by less than a few units of float32's rounding may change places with one another; scores that are
sums of few bits, hence exact, never do. Rows too long for registers beside a product get their scores from torch's
matrix product, which rounds its operands to TF32 where torch may do so (``torch.backends.cuda.matmul``): keys whose
scores differ by less than a thousandth may change places then.

n is rarely a power of two, and often just above one (1025 = 1 + 32 * 32), so a row is held in two pieces: the largest
power of two in n, and what is left, rounded up.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitslim.kernels.triton.launching import launch, on_device_of
from vitslim.kernels.triton.topk import reaching, threshold, topk_sums

# Above this a block of 16 rows, the fewest that tensor cores take, does not fit into registers.
FUSED_TOKENS = 640
# Scores that torch computes are written once and read once. So many at a time, 16 MiB, stay in the L2 cache between the
# two beside the operands of their product (A100 40 MB, H100 50 MB, L4 48 MB; of the architectures served only sm_86 has
# less than 32 MB: 6 MB). DeiT-S at 1024 px has 403 MB per image, in one piece 0.24 ms of traffic on an H100. Smaller
# parts would wait for their launches: a part's product is 5.7 GFLOP, about 15 µs in TF32, and its two launches take 10.
SCORES_AT_ONCE = 1 << 22


@triton.jit
@no_type_check
def scores_of(basis, coefficients, row, least, column, tokens, rows, directions, TOPK, BLOCK_M: tl.constexpr):
    """Coefficients times basis for some rows and columns, with the coefficients below ``least`` as zeros."""
    scores = tl.zeros([row.shape[0], column.shape[0]], tl.float32)
    for start in range(0, directions, BLOCK_M):
        m = start + tl.arange(0, BLOCK_M)
        weights = tl.load(
            coefficients + row[:, None] * directions + m[None, :],
            mask=(row < rows)[:, None] & (m < directions)[None, :],
            other=0.0,
        ).to(tl.float32)
        if TOPK:
            weights = tl.where(weights.to(tl.int32, bitcast=True) >= least[:, None], weights, 0.0)
        entries = tl.load(
            basis + m[:, None] * tokens + column[None, :],
            mask=(m < directions)[:, None] & (column < tokens)[None, :],
            other=0.0,
        ).to(tl.float32)
        scores = tl.dot(weights, entries, scores, input_precision="tf32x3")
    return scores


@triton.jit
@no_type_check
def ranks_of(scores, column, prefix, tokens):
    """Integers in the order of the scores; the prefix above all (infinity), what lies behind the tokens below all."""
    ranks = tl.maximum(scores.to(tl.int32, bitcast=True), 0)
    ranks = tl.where((column < prefix)[None, :], 0x7F800000, ranks)
    return tl.where((column < tokens)[None, :], ranks, -1)


@triton.jit
@no_type_check
def packed(kept):
    """Words of 32 columns each."""
    bits = tl.reshape(kept, [kept.shape[0], kept.shape[1] // 32, 32]).to(tl.int32)
    return tl.sum(bits << tl.arange(0, 32)[None, None, :], axis=2)


@triton.jit
@no_type_check
def key_choice_kernel(
    coefficients,
    basis,
    scores,
    chosen,
    basis_image,
    rows,
    directions,
    tokens,
    width,
    top,
    keys,
    prefix,
    GIVEN: tl.constexpr,
    TOPK: tl.constexpr,
    TO_BITS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ALL_M: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
):
    """The keys of some rows (one per tile and head) that share a basis: ``width`` words of bits, or indices."""
    blocks = tl.cdiv(rows, BLOCK_R)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks * BLOCK_R + tl.arange(0, BLOCK_R)).to(tl.int64)
    here = row < rows
    first, last = tl.arange(0, MAIN), MAIN + tl.arange(0, REST)
    # Rows count from the first of this image.
    scores += image * rows * tokens
    coefficients += image * rows * directions
    basis += image * basis_image
    chosen += image * rows * width
    if GIVEN:
        line = scores + row[:, None] * tokens
        main = tl.load(line + first[None, :], mask=here[:, None] & (first < tokens)[None, :], other=0.0)
        rest = tl.load(line + last[None, :], mask=here[:, None] & (last < tokens)[None, :], other=0.0)
    else:
        least = tl.zeros([BLOCK_R], tl.int32)
        if TOPK:
            m = tl.arange(0, ALL_M)
            cell = here[:, None] & (m < directions)[None, :]
            weights = tl.load(coefficients + row[:, None] * directions + m[None, :], mask=cell, other=0.0)
            ranks = tl.where((m < directions)[None, :], weights.to(tl.float32).to(tl.int32, bitcast=True), -1)
            least = threshold(ranks, tl.full([BLOCK_R, 1], -1, tl.int32), top)
        main = scores_of(basis, coefficients, row, least, first, tokens, rows, directions, TOPK, BLOCK_M)
        rest = scores_of(basis, coefficients, row, least, last, tokens, rows, directions, TOPK, BLOCK_M)
    main, rest = ranks_of(main, first, prefix, tokens), ranks_of(rest, last, prefix, tokens)
    level = threshold(main, rest, keys)
    # Above the level all are kept, of the equals the first so many.
    free = keys - reaching(main, level + 1) - reaching(rest, level + 1)
    equal, equal_rest = (main == level[:, None]).to(tl.int32), (rest == level[:, None]).to(tl.int32)
    place = tl.cumsum(equal, axis=1)
    place_rest = tl.cumsum(equal_rest, axis=1) + tl.sum(equal, axis=1)[:, None]
    main_kept = (main > level[:, None]) | ((equal != 0) & (place <= free[:, None]))
    rest_kept = (rest > level[:, None]) | ((equal_rest != 0) & (place_rest <= free[:, None]))
    line = chosen + row[:, None] * width
    if TO_BITS:
        word, word_rest = tl.arange(0, MAIN // 32), MAIN // 32 + tl.arange(0, REST // 32)
        tl.store(line + word[None, :], packed(main_kept), mask=here[:, None] & (word < width)[None, :])
        tl.store(line + word_rest[None, :], packed(rest_kept), mask=here[:, None] & (word_rest < width)[None, :])
    else:
        order = tl.cumsum(main_kept.to(tl.int32), axis=1)
        order_rest = tl.cumsum(rest_kept.to(tl.int32), axis=1) + tl.sum(main_kept.to(tl.int32), axis=1)[:, None]
        column = tl.broadcast_to(first[None, :], [BLOCK_R, MAIN])
        column_rest = tl.broadcast_to(last[None, :], [BLOCK_R, REST])
        tl.store(line + order - 1, column.to(tl.int64), mask=main_kept & here[:, None])
        tl.store(line + order_rest - 1, column_rest.to(tl.int64), mask=rest_kept & here[:, None])


def kept_bits(coefficients: Tensor, basis: Tensor, top: int, keys: int, tile: int, prefix: int) -> Tensor:
    """``vitslim::kept_bits``, see ``vitslim.kernels.bit_attention``."""
    words = -(-basis.shape[-1] // 32)
    return _chosen(coefficients, basis, top, keys, tile, prefix, width=words, dtype=torch.int32)


def kept_keys(coefficients: Tensor, basis: Tensor, top: int, keys: int, tile: int, prefix: int) -> Tensor:
    """``vitslim::kept_keys``, see ``vitslim.kernels.sparse_attention``; here in rising order."""
    return _chosen(coefficients, basis, top, keys, tile, prefix, width=keys, dtype=torch.int64)


def _chosen(
    coefficients: Tensor,
    basis: Tensor,
    top: int,
    keys: int,
    tile: int,
    prefix: int,
    *,
    width: int,
    dtype: torch.dtype,
) -> Tensor:
    images, heads, patches, directions = coefficients.shape
    tokens, tiles = basis.shape[-1], -(-patches // tile)
    fused = tokens <= FUSED_TOKENS
    with on_device_of(coefficients):
        rows, basis = coefficients.contiguous(), basis.contiguous()
        if tile > 1 or not (fused or top >= directions):
            rows, top = topk_sums(rows, tile, tiles, top), directions
        # A basis for each image: rows of one image have nothing to do with those of another.
        groups, together = (images, 1) if basis.ndim == 3 else (1, images)
        rows = rows.view(groups, together * heads * tiles, directions)
        chosen = rows.new_empty(groups, rows.shape[1], width, dtype=dtype)
        if fused:
            _launch(chosen, rows, basis, None, top, keys, prefix)
        else:
            _choose_by_parts(chosen, rows, basis.view(groups, directions, tokens), keys, prefix)
    return chosen.view(images, heads, tiles, width)


def _choose_by_parts(chosen: Tensor, rows: Tensor, basis: Tensor, keys: int, prefix: int) -> None:
    """Scores by torch, some rows at a time; then the same kernel."""
    groups, count, directions = rows.shape
    at_once = max(1, SCORES_AT_ONCE // basis.shape[2])
    # Half precision would make many scores equal.
    with torch.autocast(rows.device.type, enabled=False):
        for group in range(groups):
            matrix = basis[group].float()
            for start in range(0, count, at_once):
                some = slice(start, min(start + at_once, count))
                scores = rows[group, some].float() @ matrix
                _launch(chosen[group : group + 1, some], rows, matrix, scores, directions, keys, prefix)


def _launch(
    chosen: Tensor, rows: Tensor, basis: Tensor, scores: Tensor | None, top: int, keys: int, prefix: int
) -> None:
    groups, count, _ = chosen.shape
    directions, tokens = basis.shape[-2:]
    sizes, options = key_choice_sizes(tokens, directions, given=scores is not None)
    launch(
        key_choice_kernel,
        groups * triton.cdiv(count, sizes["BLOCK_R"]),
        rows,
        basis,
        basis if scores is None else scores,
        chosen,
        basis.stride(0) if basis.ndim == 3 else 0,
        count,
        directions,
        tokens,
        chosen.shape[2],
        top,
        keys,
        prefix,
        GIVEN=scores is not None,
        TOPK=top < directions,
        TO_BITS=chosen.dtype == torch.int32,
        **sizes,
        **options,
    )


def key_choice_sizes(tokens: int, directions: int, *, given: bool) -> tuple[dict[str, int], dict[str, Any]]:
    """The block sizes of ``key_choice_kernel`` and its launch options, with scores given or computed."""
    main = max(32, 1 << (tokens.bit_length() - 1))
    sizes = {
        # A matrix product takes 16 rows or more; without one a row of its own is soonest done.
        "BLOCK_R": 1 if given else 16,
        "BLOCK_M": 16,
        "ALL_M": triton.next_power_of_2(directions),
        "MAIN": main,
        "REST": max(32, triton.next_power_of_2(max(1, tokens - main))),
    }
    warps = 4 if sizes["BLOCK_R"] * main <= 4096 else 8 if sizes["BLOCK_R"] * main <= 8192 else 16
    return sizes, {"num_warps": warps, "num_stages": 1}
