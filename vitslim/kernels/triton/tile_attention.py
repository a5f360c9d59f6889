"""Flash attention in which the queries of a tile share the indices of their keys.

A program owns queries of one tile. Rows of K and V are gathered by index straight into the blocks that tensor cores
multiply, so a tile costs what dense attention over as many keys would, and no mask is needed. Prefix queries, which
read every key, have programs of their own, the first ones of each head: they run longest.

The arithmetic, heads of 64 in half precision on an H100. A query and a key make 2 · 64 + 2 · 64 = 256 operations, a
gathered key brings 256 bytes for the 64 queries of a tile: 64 operations per byte. K and V of a head are 262 KB at
1,025 tokens and stay in L2; at an estimated 5.5 TB/s from there a tile cannot exceed 350 TFLOP/s, about what dense
fused attention reaches at that length (FlashAttention-3, 306 to 392). Tiles of 16 queries could reach a quarter of it.
A quarter of the keys is then worth it from 30 % of dense throughput on; 60 % is the aim. Not measured yet.
"""

import math
from collections.abc import Mapping
from typing import Any, no_type_check

import triton
import triton.language as tl
from torch import Tensor

from vitslim.kernels.triton.compiling import KernelForm
from vitslim.kernels.triton.launching import dot_precision, launch, on_device_of, padded, rows_of, strides_of

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
@no_type_check
def _dot(first, second, total, PRECISION: tl.constexpr):
    """``total`` plus the matrix product; see ``launching.dot_precision``."""
    if PRECISION == "widened":
        return tl.dot(first.to(tl.float32), second.to(tl.float32), total)
    return tl.dot(first, second, total, input_precision=PRECISION)


@triton.jit
@no_type_check
def tile_attention_kernel(
    query,
    key,
    value,
    kept,
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
    out,
    WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
    BLOCK_E: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some queries of one tile, or of the prefix, with the keys they share."""
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
        scores = _dot(own, keys, tl.zeros([BLOCK_Q, BLOCK_K], tl.float32), PRECISION) * factor
        scores = tl.where(inside[None, :], scores, float("-inf"))
        # Each block has a key inside, so the maximum is a number from the first one on.
        new_most = tl.maximum(most, tl.max(scores, axis=1))
        weights, shrink = tl.exp2(scores - new_most[:, None]), tl.exp2(most - new_most)
        most, total = new_most, total * shrink + tl.sum(weights, axis=1)
        values = tl.load(
            value + column[:, None] * value_row + f[None, :],
            mask=inside[:, None] & (f < VALUE_WIDTH)[None, :],
            other=0.0,
        )
        mixed = _dot(weights.to(values.dtype), values, mixed * shrink[:, None], PRECISION)
    # A tile without keys gives zeros.
    mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(
        out + row[:, None] * out_row + f[None, :],
        mixed.to(out.dtype.element_ty),
        mask=here[:, None] & (f < VALUE_WIDTH)[None, :],
    )


def attend(query: Tensor, key: Tensor, value: Tensor, kept: Tensor, tile: int, prefix: int, scale: float) -> Tensor:
    """The forward of ``vitslim::sparse_attention`` without a bias, see ``vitslim.kernels.sparse_attention``."""
    images, heads, tokens, width = query.shape
    query, key, value, kept = (rows_of(part) for part in (query, key, value, kept.contiguous()))
    out = value.new_empty(images, tokens, heads, value.shape[3]).transpose(1, 2)
    sizes, options = _launch_sizes(width, value.shape[3], query.element_size(), tile)
    programs = triton.cdiv(prefix, sizes["BLOCK_Q"]) + kept.shape[2] * triton.cdiv(tile, sizes["BLOCK_Q"])
    with on_device_of(query):
        launch(
            tile_attention_kernel,
            images * heads * programs,
            query,
            key,
            value,
            kept,
            *strides_of(query, key, value, out),
            heads,
            tokens,
            kept.shape[3],
            tile,
            kept.shape[2],
            prefix,
            scale,
            out,
            **sizes,
            PRECISION=dot_precision(query),
            **options,
        )
    return out


def forms() -> list[KernelForm]:
    """Heads of DeiT and ViT, padded ones, the widest ones, and float32, which takes the most shared memory."""
    found: list[KernelForm] = []
    for dtype, width, value_width in (
        *(("fp16", 64, 64), ("fp16", 48, 48), ("bf16", 64, 64), ("bf16", 128, 128)),
        *(("fp32", 64, 64), ("fp32", 128, 128), ("fp32", 32, 128)),
    ):
        # A launch knows a single class token as the number 1.
        fixed = {} if dtype == "fp32" else {"prefix": 1}
        found.append(_form(dtype, (width, value_width), 64, "i64", fixed))
    return found


def packed_form(dtype: str, width: int, tile: int, fixed: Mapping[str, Any]) -> KernelForm:
    """The kernel for operands that lie dense in memory, with indices of 32 bits, as TensorRT has them.

    Args:
        dtype: ``fp16`` or ``bf16``.
        width: of a head, of query, key and value alike.
        tile: patch queries that share a key set.
        fixed: what else is known when it is compiled, by argument.
    """
    rows = {f"{part}_row": width for part in _STRIDED}
    return _form(dtype, (width, width), tile, "i32", {**rows, **fixed})


def queries_of(form: KernelForm) -> int:
    """How many queries a program of this form owns."""
    return form.constants["BLOCK_Q"]


_STRIDED = ("query", "key", "value", "out")


def _form(dtype: str, widths: tuple[int, int], tile: int, index: str, fixed: Mapping[str, Any]) -> KernelForm:
    strides = [f"{part}_{axis}" for part in _STRIDED for axis in ("image", "head", "row")]
    pointers = dict.fromkeys(_STRIDED, f"*{dtype}") | {"kept": f"*{index}"}
    counts = ("heads", "tokens", "keys_kept", "tile", "tiles", "prefix")
    types = pointers | dict.fromkeys((*strides, *counts), "i32") | {"scale": "fp32"}
    sizes, options = _launch_sizes(*widths, 4 if dtype == "fp32" else 2, tile)
    # Of a dense tensor every stride is a multiple of the width.
    multiple = math.gcd(16, *widths)
    return KernelForm(
        name=f"tile_attention_kernel {dtype} widths {widths[0]}, {widths[1]}",
        kernel=tile_attention_kernel,
        types={name: kind for name, kind in types.items() if name not in fixed},
        constants={**sizes, "PRECISION": "tf32x3" if dtype == "fp32" else "tf32", **fixed},
        multiples=dict.fromkeys(pointers, 16) | {name: multiple for name in strides if name not in fixed},
        warps=options["num_warps"],
        stages=options["num_stages"],
    )


def _launch_sizes(width: int, value_width: int, entry_bytes: int, tile: int) -> tuple[dict[str, int], dict[str, Any]]:
    """Constants and options that fit the shared memory of every architecture; estimated, not measured."""
    row_bytes = padded(max(width, value_width)) * entry_bytes
    queries, keys, stages = (64, 64, 3) if row_bytes <= 128 else (64, 32, 2) if row_bytes <= 256 else (32, 32, 1)
    constants = {
        "WIDTH": width,
        "VALUE_WIDTH": value_width,
        "BLOCK_E": padded(width),
        "BLOCK_F": padded(value_width),
        # A tile of 16 queries would leave three quarters of a block of 64 empty.
        "BLOCK_Q": min(queries, padded(tile)),
        "BLOCK_K": keys,
    }
    return constants, {"num_warps": 4, "num_stages": stages}
