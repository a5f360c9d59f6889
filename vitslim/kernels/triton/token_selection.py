"""Triton kernels that choose tokens: the class row of an attention, the order of scores, rows moved to their indices.

What a selection of Evo-ViT may cost, DeiT-S, batch 256, 224 px, bf16 on an H100 (3.35 TB/s): the tokens are 256 · 197 ·
384 entries, 39 MB, 11.5 µs to read or to write. One LayerNorm pass (read, write) is 23 µs, one read and one write of
the tokens are 23 µs more: 46 µs is the mark.

* ``class_row_kernel`` reads the keys where they lie between queries and values: 11.5 µs. A batched matrix product has
  them copied first, since batch and heads are not one axis there: three times as much.
* ``rank_kernel`` finds the place of a score by counting the larger ones: p² comparisons, 10 M at 224 px, no
  communication, equal scores in order. The inverse permutation, which a sort has to find anew, is what it computes
  first. At p = 4096 it is 17 M comparisons per image, 2 µs.
* ``move_kernel`` reads and writes each token once, 23 µs, from and to two parts, so that active and inactive tokens
  need no ``cat`` before and no copy of a slice after. Bringing them back is the same kernel with sides exchanged: rows
  go to ``order[i]``, which is a permutation, so that no two meet, and no inverse is needed.

Together 35 to 40 µs.

At batch 1 they cannot win, however much one kernel does at once: half of the tokens in eight blocks take 13 µs less
(estimated), and what comes between products (five class rows, two orders, two moves, the way back) is at least ten
launches of about 2 µs.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitslim.kernels.triton.compiling import KernelForm
from vitslim.kernels.triton.launching import launch, on_device_of, rows_of


@triton.jit
@no_type_check
def class_row_kernel(
    query,
    key,
    scores,
    row,
    heads,
    tokens,
    width,
    scale,
    query_batch_stride,
    query_head_stride,
    key_batch_stride,
    key_head_stride,
    key_token_stride,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """softmax(q Kᵀ scale) of one image and head; the scores wait in float32 for their maximum and sum."""
    picture, head = (tl.program_id(0) // heads).to(tl.int64), tl.program_id(0) % heads
    feature = tl.arange(0, BLOCK_E)
    asked = query + picture * query_batch_stride + head * query_head_stride + feature
    asked = tl.load(asked, mask=feature < width, other=0.0).to(tl.float32) * scale
    keys = key + picture * key_batch_stride + head * key_head_stride
    begin = tl.program_id(0).to(tl.int64) * tokens
    largest = float("-inf")
    total = 0.0
    for start in range(0, tokens, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        read = keys + token.to(tl.int64)[:, None] * key_token_stride + feature[None, :]
        part = tl.load(read, mask=(token < tokens)[:, None] & (feature < width)[None, :], other=0.0).to(tl.float32)
        score = tl.where(token < tokens, tl.sum(part * asked[None, :], axis=1), float("-inf"))
        tl.store(scores + begin + token, score, mask=token < tokens)
        # The sum so far is kept in terms of the largest score so far.
        grown = tl.maximum(largest, tl.max(score, axis=0))
        total = total * tl.exp(largest - grown) + tl.sum(tl.exp(score - grown), axis=0)
        largest = grown
    tl.debug_barrier()
    for start in range(0, tokens, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        score = tl.load(scores + begin + token, mask=token < tokens, other=0.0)
        tl.store(row + begin + token, (tl.exp(score - largest) / total).to(row.dtype.element_ty), mask=token < tokens)


@triton.jit
@no_type_check
def _sortable(scores, index, count):
    """Integers that sort as the scores do; NaN is above all, as torch sorts it."""
    score = tl.load(scores + index, mask=index < count, other=0.0).to(tl.float32) + 0.0  # -0 becomes 0
    bits = score.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return tl.where(score == score, ordered, 0x7FFFFFFF)


@triton.jit
@no_type_check
def rank_kernel(scores, falling, indices, count, prefix, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr):
    """Some scores of one image go to their indices in falling order; the index decides between equal ones."""
    picture = tl.program_id(0).to(tl.int64)
    scores += picture * count
    falling += picture * count
    indices += picture * (prefix + count)
    own = tl.program_id(1) * BLOCK_I + tl.arange(0, BLOCK_I)
    mine = _sortable(scores, own, count)
    before = tl.zeros([BLOCK_I, BLOCK_J], tl.int32)
    for start in range(0, count, BLOCK_J):
        other = start + tl.arange(0, BLOCK_J)
        theirs = _sortable(scores, other, count)
        first = (theirs[None, :] > mine[:, None]) | (
            (theirs[None, :] == mine[:, None]) & (other[None, :] < own[:, None])
        )
        before += (first & (other < count)[None, :]).to(tl.int32)
    rank = tl.sum(before, axis=1)
    value = tl.load(scores + own, mask=own < count, other=0.0)
    tl.store(falling + rank, value, mask=own < count)
    tl.store(indices + prefix + rank, (own + prefix).to(tl.int64), mask=own < count)
    # The first program also writes the prefix, which stays at the front.
    for start in range(0, tl.where(tl.program_id(1) == 0, prefix, 0), BLOCK_I):
        token = start + tl.arange(0, BLOCK_I)
        tl.store(indices + token, token.to(tl.int64), mask=token < prefix)


@triton.jit
@no_type_check
def _read_parts(first, second, first_strides, second_strides, picture, row, cut, feature, inside):
    """Rows of (first, second), which are cut at row ``cut``."""
    of_first = (row < cut)[:, None]
    read = first + (picture * first_strides[0] + row * first_strides[1])[:, None] + feature[None, :]
    found = tl.load(read, mask=inside & of_first)
    read = second + (picture * second_strides[0] + (row - cut) * second_strides[1])[:, None] + feature[None, :]
    return tl.where(of_first, found, tl.load(read, mask=inside & (row >= cut)[:, None]))


@triton.jit
@no_type_check
def _write_parts(first, second, values, picture, row, cut, count, width, feature, inside):
    """Rows of (first, second), dense and cut at row ``cut`` of ``count``."""
    write = first + (picture * cut + row)[:, None] * width + feature[None, :]
    tl.store(write, values, mask=inside & (row < cut)[:, None])
    write = second + (picture * (count - cut) + row - cut)[:, None] * width + feature[None, :]
    tl.store(write, values, mask=inside & (row >= cut)[:, None])


@triton.jit
@no_type_check
def move_kernel(
    first,
    second,
    first_out,
    second_out,
    indices,
    count,
    ahead,
    ahead_out,
    width,
    first_batch_stride,
    first_token_stride,
    second_batch_stride,
    second_token_stride,
    SCATTER: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Some rows of one image from (first, second) to (first_out, second_out): row ``indices[i]`` to i, or back."""
    picture = tl.program_id(0).to(tl.int64)
    near = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    far = tl.load(indices + picture * count + near, mask=near < count, other=0).to(tl.int32)
    if SCATTER:
        source, target = near, far
    else:
        source, target = far, near
    feature = tl.program_id(2) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (near < count)[:, None] & (feature < width)[None, :]
    first_strides, second_strides = (first_batch_stride, first_token_stride), (second_batch_stride, second_token_stride)
    row = _read_parts(first, second, first_strides, second_strides, picture, source, ahead, feature, inside)
    _write_parts(first_out, second_out, row, picture, target, ahead_out, count, width, feature, inside)


def class_row(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """``vitslim::class_row``, see ``vitslim.kernels.token_selection``."""
    images, heads, tokens, width = key.shape
    query, key = (rows_of(part) for part in (query, key))
    scores = key.new_empty(images, heads, tokens, dtype=torch.float32)
    row = key.new_empty(images, heads, tokens)
    block_e = triton.next_power_of_2(width)
    with on_device_of(key):
        launch(
            class_row_kernel,
            images * heads,
            query,
            key,
            scores,
            row,
            heads,
            tokens,
            width,
            scale,
            query.stride(0),
            query.stride(1),
            key.stride(0),
            key.stride(1),
            key.stride(2),
            BLOCK_N=max(16, 4096 // block_e),
            BLOCK_E=block_e,
        )
    return row


def argsort_by_score(scores: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """``vitslim::argsort_by_score``."""
    scores = scores.contiguous()
    images, count = scores.shape
    falling = torch.empty_like(scores)
    indices = scores.new_empty(images, prefix + count, dtype=torch.int64)
    block_i, block_j = 32, 64
    with on_device_of(scores):
        # One program at least, for the prefix.
        launch(
            rank_kernel,
            (images, max(1, triton.cdiv(count, block_i))),
            scores,
            falling,
            indices,
            count,
            prefix,
            BLOCK_I=block_i,
            BLOCK_J=block_j,
        )
    return falling, indices


def moved(first: Tensor, second: Tensor, indices: Tensor, ahead: int, *, scatter: bool) -> tuple[Tensor, Tensor]:
    """``vitslim::gather_split``, and with ``scatter`` ``vitslim::scatter_back``."""
    first, second = (rows_of(part) for part in (first, second))
    images, count = indices.shape
    width = first.shape[2]
    first_out = first.new_empty(images, ahead, width)
    second_out = first.new_empty(images, count - ahead, width)
    block_n, block_d = 8, min(256, triton.next_power_of_2(width))
    with on_device_of(first):
        launch(
            move_kernel,
            (images, triton.cdiv(count, block_n), triton.cdiv(width, block_d)),
            first,
            second,
            first_out,
            second_out,
            indices.contiguous(),
            count,
            first.shape[1],
            ahead,
            width,
            first.stride(0),
            first.stride(1),
            second.stride(0),
            second.stride(1),
            SCATTER=scatter,
            BLOCK_N=block_n,
            BLOCK_D=block_d,
        )
    return first_out, second_out


def forms() -> list[KernelForm]:
    """The kernels as DeiT-S wants them."""
    found: list[KernelForm] = []
    for dtype in ("bf16", "fp16", "fp32"):
        pointers = {"query": f"*{dtype}", "key": f"*{dtype}", "scores": "*fp32", "row": f"*{dtype}"}
        strides = ("query_batch_stride", "query_head_stride", "key_batch_stride", "key_head_stride", "key_token_stride")
        sizes = dict.fromkeys((*strides, "heads", "tokens", "width"), "i32") | {"scale": "fp32"}
        aligned = dict.fromkeys((*pointers, *strides, "width"), 16)
        constants = {"BLOCK_N": 64, "BLOCK_E": 64}
        found.append(KernelForm(f"class_row_kernel {dtype}", class_row_kernel, pointers | sizes, constants, aligned))
        pointers = dict.fromkeys(("first", "second", "first_out", "second_out"), f"*{dtype}") | {"indices": "*i64"}
        strides = ("first_batch_stride", "first_token_stride", "second_batch_stride", "second_token_stride")
        sizes = dict.fromkeys((*strides, "count", "ahead", "ahead_out", "width"), "i32")
        aligned = dict.fromkeys((*pointers, *strides, "width"), 16)
        for scatter in (False, True):
            constants = {"SCATTER": scatter, "BLOCK_N": 8, "BLOCK_D": 256}
            name = f"move_kernel {'scatter' if scatter else 'gather'} {dtype}"
            found.append(KernelForm(name, move_kernel, pointers | sizes, constants, aligned))
    pointers = {"scores": "*fp32", "falling": "*fp32", "indices": "*i64"}
    constants = {"BLOCK_I": 32, "BLOCK_J": 64}
    found.append(
        KernelForm(
            "rank_kernel",
            rank_kernel,
            pointers | {"count": "i32", "prefix": "i32"},
            constants,
            dict.fromkeys(pointers, 16),
        )
    )
    return found
