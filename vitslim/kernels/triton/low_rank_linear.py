"""The Triton kernel of a linear map by a shared matrix and a low-rank residual, for few rows.

y = x W'ᵀ + (x Aᵀ) Bᵀ + b as three products are three launches, and the result is written, read and written again. Here
a program owns a tile of y: it walks the inner axis once for x W'ᵀ and x Aᵀ together, then multiplies its rows of x Aᵀ
by its columns of Bᵀ. Every tile of columns computes x Aᵀ anew, which few rows can afford; see ``MOST_PRODUCTS`` in
``vitslim.kernels.low_rank_linear``. Rows are the innermost order of the programs, so that W' comes from memory once.

What stays in the L2 cache. SReT walks blocks as A A B B: between two readings of a shared matrix lie the other
matrices of its block, in bf16 12 d² · 2 bytes together, and what one image of 197 tokens writes on the way, some
18 d · 197 · 2 bytes: 3.5 + 2.7 MB in DeiT-S, 14.2 + 5.4 MB in DeiT-B, 25.2 + 7.3 MB in ViT-L. An RTX 4090 has 72 MB of
L2: there the order alone keeps the matrices for the second application. An A100 has 40 MB in two halves that each cache
for the SMs on their side, so that what all SMs read may take twice the room, and an H100's 50 MB may be alike: 20 and
25 MB hold DeiT-S and DeiT-B, and ViT-L in part. An RTX 3090 or A10 has 6 MB: most of DeiT-S. What is kept is worth, in
DeiT-B with 5 of 12 blocks, 71 MB or 21 µs of an H100's 3.35 TB/s; in DeiT-S 5 µs.

The hints: W' is to be evicted last while it is going to be walked again, and first when it is not, so that it does not
stay in the way of the next pair; A and B, read in this launch alone, first. They matter where the order alone does not
suffice: ViT-L, large images, other work on the same GPU. The compiler hands them to the L2 cache from compute
capability 9.0 on; before, its pipelined loads carry none.
"""

from typing import no_type_check

import triton
import triton.language as tl
from torch import Tensor

from vitslim.kernels.triton.compiling import KernelForm
from vitslim.kernels.triton.launching import dot_precision, launch, on_device_of, padded, rows_of
from vitslim.kernels.triton.pieces import dot
from vitslim.kernels.triton.tuning import Tiles, tile_rule, tiles_for


@triton.jit
@no_type_check
def low_rank_linear_kernel(
    tokens,
    weight,
    up,
    down,
    bias,
    out,
    rows,
    inner,
    columns,
    rank,
    token_stride,
    HAS_BIAS: tl.constexpr,
    SHARED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of the result. ``SHARED`` is how W' is to be evicted from the cache."""
    across = tl.cdiv(rows, BLOCK_M)
    m = tl.program_id(0) % across * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) // across * BLOCK_N + tl.arange(0, BLOCK_N)
    r = tl.arange(0, BLOCK_R)
    is_row, is_column, is_rank = m < rows, n < columns, r < rank
    tokens += m.to(tl.int64)[:, None] * token_stride
    mapped = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    lowered = tl.zeros([BLOCK_M, BLOCK_R], tl.float32)
    for start in range(0, inner, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        inside = k < inner
        x = tl.load(tokens + k[None, :], mask=is_row[:, None] & inside[None, :], other=0.0)
        shared = tl.load(
            weight + n[None, :] * inner + k[:, None],
            mask=inside[:, None] & is_column[None, :],
            other=0.0,
            eviction_policy=SHARED,
        )
        own = tl.load(
            down + r[None, :] * inner + k[:, None],
            mask=inside[:, None] & is_rank[None, :],
            other=0.0,
            eviction_policy="evict_first",
        )
        mapped = dot(x, shared, mapped, PRECISION)
        lowered = dot(x, own, lowered, PRECISION)
    own = tl.load(
        up + n[None, :] * rank + r[:, None],
        mask=is_rank[:, None] & is_column[None, :],
        other=0.0,
        eviction_policy="evict_first",
    )
    mapped = dot(lowered.to(own.dtype), own, mapped, PRECISION)
    if HAS_BIAS:
        mapped += tl.load(bias + n, mask=is_column, other=0.0).to(tl.float32)[None, :]
    place = m.to(tl.int64)[:, None] * columns + n[None, :]
    tl.store(out + place, mapped.to(out.dtype.element_ty), mask=is_row[:, None] & is_column[None, :])


def mapped(
    tokens: Tensor,
    weight: Tensor,
    up: Tensor,
    down: Tensor,
    bias: Tensor | None,
    walked_again: bool,
    tiles: Tiles | None = None,
) -> Tensor:
    """``vitslim::low_rank_linear``, see ``vitslim.kernels.low_rank_linear``.

    Args:
        tiles: instead of those of the table.
    """
    (columns, inner), rank = weight.shape, up.shape[1]
    flat = rows_of(tokens.reshape(-1, inner))
    rows = flat.shape[0]
    tiles = tiles or tiles_for("low_rank_linear", flat, weight, rank)
    out = tokens.new_empty(*tokens.shape[:-1], columns)
    weight, up, down = weight.contiguous(), up.contiguous(), down.contiguous()
    with on_device_of(tokens):
        launch(
            low_rank_linear_kernel,
            triton.cdiv(rows, tiles.rows) * triton.cdiv(columns, tiles.columns),
            flat,
            weight,
            up,
            down,
            weight if bias is None else bias.contiguous(),
            out,
            rows,
            inner,
            columns,
            rank,
            flat.stride(0),
            HAS_BIAS=bias is not None,
            SHARED="evict_last" if walked_again else "evict_first",
            BLOCK_M=tiles.rows,
            BLOCK_N=tiles.columns,
            BLOCK_K=tiles.depth,
            BLOCK_R=padded(rank),
            PRECISION=dot_precision(tokens),
            **tiles.options(),
        )
    return out


def forms() -> list[KernelForm]:
    """The kernel as one image of DeiT-S and ViT-L wants it, and in float32."""
    found: list[KernelForm] = []
    for dtype, width, columns, precision in (
        ("bf16", 384, 1152, "tf32"),
        ("fp16", 384, 384, "tf32"),
        ("bf16", 1024, 4096, "tf32"),
        ("fp32", 384, 1152, "tf32x3"),
    ):
        pointers = dict.fromkeys(("tokens", "weight", "up", "down", "bias", "out"), f"*{dtype}")
        sizes = dict.fromkeys(("rows", "inner", "columns", "rank", "token_stride"), "i32")
        rank = width // 12
        block_r = padded(rank)
        tiles = tile_rule("float32" if dtype == "fp32" else "float16", (width, columns, block_r), 256)
        constants = {
            "HAS_BIAS": True,
            "SHARED": "evict_last",
            "BLOCK_M": tiles.rows,
            "BLOCK_N": tiles.columns,
            "BLOCK_K": tiles.depth,
            "BLOCK_R": block_r,
            "PRECISION": precision,
        }
        name = f"low_rank_linear_kernel {dtype} {width} to {columns}"
        aligned = (*pointers, "inner", "columns", "token_stride", *(() if rank % 16 else ("rank",)))
        types = {**pointers, **sizes}
        found.append(
            KernelForm(name, low_rank_linear_kernel, types, constants, aligned, warps=tiles.warps, stages=tiles.stages)
        )
    return found
