"""The largest entries of each row, found without a sort by bisection on the bits of the floats."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitslim.kernels.triton.launching import launch


@triton.jit
@no_type_check
def threshold(main, rest, wanted):
    """For each row a number that at least ``wanted`` entries reach: all that equal the last of them, no others."""
    low = tl.zeros([main.shape[0]], tl.int32)
    high = tl.maximum(tl.max(main, axis=1), tl.max(rest, axis=1)) + 1
    # Always: at least ``wanted`` entries reach low, fewer reach high.
    while tl.max(high - low, axis=0) > 1:
        middle = low + (high - low) // 2
        count = reaching(main, middle) + reaching(rest, middle)
        low = tl.where(count >= wanted, middle, low)
        # Where just so many reach it the row is done: nothing is gained by finding the very value.
        high = tl.where(count == wanted, middle + 1, tl.where(count < wanted, middle, high))
    return low


@triton.jit
@no_type_check
def reaching(values, level):
    """How many entries of each row are at least ``level``."""
    return tl.sum((values >= level[:, None]).to(tl.int32), axis=1)


@triton.jit
@no_type_check
def topk_sum_kernel(
    coefficients,
    summed,
    patches,
    directions,
    tile,
    tiles,
    top,
    BLOCK_P: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Of each row of a tile the ``top`` largest coefficients, summed over the tile."""
    plane = (tl.program_id(0) // tiles).to(tl.int64)
    first = tl.program_id(0) % tiles * tile
    behind = tl.minimum(first + tile, patches)
    m = tl.arange(0, BLOCK_M)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(first, behind, BLOCK_P):
        row = start + tl.arange(0, BLOCK_P)
        cell = (row < behind)[:, None] & (m < directions)[None, :]
        values = tl.load(
            coefficients + (plane * patches + row)[:, None] * directions + m[None, :], mask=cell, other=0.0
        ).to(tl.float32)
        ranks = tl.where(cell, values.to(tl.int32, bitcast=True), -1)
        least = threshold(ranks, tl.full([BLOCK_P, 1], -1, tl.int32), top)
        total += tl.sum(tl.where(ranks >= least[:, None], values, 0.0), axis=0)
    tl.store(summed + tl.program_id(0).to(tl.int64) * directions + m, total, mask=m < directions)


def topk_sums(coefficients: Tensor, tile: int, tiles: int, top: int) -> Tensor:
    """Of each row of (b, h, p, m) the ``top`` largest, with all their equals, summed over the rows of each tile."""
    images, heads, patches, directions = coefficients.shape
    summed = coefficients.new_empty(images, heads, tiles, directions, dtype=torch.float32)
    block_m = triton.next_power_of_2(directions)
    launch(
        topk_sum_kernel,
        images * heads * tiles,
        coefficients,
        summed,
        patches,
        directions,
        tile,
        tiles,
        min(top, directions),
        BLOCK_P=max(1, min(16, triton.next_power_of_2(tile), 4096 // block_m)),
        BLOCK_M=block_m,
    )
    return summed
