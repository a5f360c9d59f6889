"""Measuring which blocks are fastest on the GPU at hand, for the table that ``tuning`` reads.

python -c "from vitslim.kernels.triton.autotuning import autotune; autotune()"
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any, cast

import torch

from vitslim.errors import MissingDependencyError
from vitslim.files import write_json
from vitslim.kernels.low_rank_linear import MOST_PRODUCTS
from vitslim.kernels.triton import bit_attention, bit_attention_backward, low_rank_linear, tile_attention, tuning
from vitslim.kernels.triton.cases import TOKENS, Problem
from vitslim.kernels.triton.linear_cases import WIDTHS, LinearMap, maps_of
from vitslim.kernels.triton.tuning import (
    TILE_SIDES,
    Blocks,
    Tiles,
    capability_of,
    read_table,
    row_name,
    tiles_row_name,
)

Measure = Callable[[Callable[[], Any]], float]
"""Milliseconds of a call."""


@dataclass(frozen=True)
class Tunable:
    """One row of the table to be: a kernel on operands that fit the row."""

    row: str
    call: Callable[[Any], Any]
    candidates: tuple[Blocks | Tiles, ...]


def autotune(
    dtypes: Iterable[torch.dtype] = (torch.float16, torch.bfloat16),
    widths: Iterable[int] = (64,),
    tokens: Iterable[int] = TOKENS,
    batch: int = 16,
    path: Path | None = None,
) -> dict[str, Blocks | Tiles]:
    """Measure attention and SReT's linear maps on the current GPU and write the fastest blocks into the table.

    About 40 candidates for each kernel, type, head width and token count; some minutes for each, most of it compiling.
    The linear maps are those of DeiT-S, DeiT-B and ViT-L for one image.

    Args:
        tokens: one class token and a square of patches each.
        batch: images, for attention.
        path: the table; the one shipped with vitslim by default.

    Raises:
        MissingDependencyError: there is no NVIDIA GPU.
    """
    if not torch.cuda.is_available():
        raise MissingDependencyError("blocks are tuned by measuring, which needs an NVIDIA GPU; torch sees none")
    from triton.testing import do_bench

    def measure(call: Callable[[], Any]) -> float:
        return cast(float, do_bench(call, return_mode="median"))

    dtypes, tokens = tuple(dtypes), tuple(tokens)
    problems = chain(
        (tunables("cuda", *size, batch) for size in product(dtypes, tuple(widths), tokens)),
        (linear_tunables("cuda", *size) for size in product(dtypes, WIDTHS, tokens)),
    )
    found: dict[str, Blocks | Tiles] = {}
    for size in problems:
        # Written after each size, so that what an interruption loses is one.
        found |= tune(size, measure, path)
    return found


def tune(problems: Iterable[Tunable], measure: Measure, path: Path | None = None) -> dict[str, Blocks | Tiles]:
    """Write the fastest candidate of each problem into the table, and return the new rows; other rows stay.

    A candidate that does not compile or does not fit is passed over.
    """
    path = path or tuning.TABLE
    found: dict[str, Blocks | Tiles] = {}
    for problem in problems:
        times = {blocks: _time_of(problem.call, blocks, measure) for blocks in problem.candidates}
        best = min(times, key=times.__getitem__)
        if times[best] < float("inf"):
            found[problem.row] = best
    rows = read_table(path) | found if path.exists() else found
    write_json(path, {"rows": {name: asdict(rows[name]) for name in sorted(rows)}})
    tuning.forget()
    return found


def tunables(device: torch.device | str, dtype: torch.dtype, width: int, tokens: int, batch: int) -> Iterator[Tunable]:
    """The attention kernels on keys that a freshly started predictor chose."""
    problem = Problem(torch.device(device), dtype, tokens, batch, width)
    query, key, value = problem.query, problem.key, problem.value
    with torch.no_grad():
        bits, kept = problem.bits(), problem.kept(problem.TILE)
    shape = (capability_of(query.device), str(dtype).removeprefix("torch."), width, tokens)
    scale, prefix = problem.scale, problem.PREFIX

    def row(kernel: str) -> str:
        return row_name(kernel, *shape)

    def by_bits(blocks: Blocks | None) -> Any:
        return bit_attention.attend(query, key, value, bits, 1, prefix, scale, blocks)

    def by_tiles(blocks: Blocks) -> Any:
        return tile_attention.attend(query, key, value, kept, problem.TILE, prefix, scale, blocks)

    out, lse = by_bits(None)

    def backward(blocks: Blocks) -> Any:
        return bit_attention_backward.gradients(out, query, key, value, bits, out, lse, 1, prefix, scale, blocks)

    yield Tunable(row("bit_attention"), by_bits, candidates(listed=(False, True)))
    yield Tunable(row("bit_attention_backward"), backward, candidates(listed=(False, True)))
    yield Tunable(row("tile_attention"), by_tiles, candidates())


def candidates(listed: tuple[bool, ...] = (False,)) -> tuple[Blocks, ...]:
    """Blocks that are worth a try on some GPU."""
    return tuple(
        Blocks(queries, keys, warps, stages, lists)
        for queries in (32, 64, 128)
        for keys in (32, 64, 128)
        for warps in (4, 8)
        for stages in (2, 3)
        for lists in listed
    )


def linear_tunables(device: torch.device | str, dtype: torch.dtype, width: int, tokens: int) -> Iterator[Tunable]:
    """The linear maps of a block for one image, as far as the kernel takes them."""
    where = (capability_of(torch.device(device)), str(dtype).removeprefix("torch."))
    for one in maps_of(torch.device(device), dtype, width, tokens):
        if one.shared_macs > MOST_PRODUCTS:
            continue

        def call(tiles: Tiles, one: LinearMap = one) -> Any:
            return low_rank_linear.mapped(*one.operands, walked_again=True, tiles=tiles)

        yield Tunable(tiles_row_name("low_rank_linear", *where, one.shape, tokens), call, tile_candidates())


def tile_candidates() -> tuple[Tiles, ...]:
    """Tiles that are worth a try on some GPU."""
    return tuple(
        Tiles(*sides, depth, warps, stages)
        for sides in TILE_SIDES
        for depth in (64, 128)
        for warps in (4, 8)
        for stages in (2, 4)
    )


def _time_of(call: Callable[[Any], Any], blocks: Blocks | Tiles, measure: Measure) -> float:
    from triton.compiler.errors import CompilationError
    from triton.runtime.errors import OutOfResources, PTXASError

    try:
        return measure(lambda: call(blocks))
    except (CompilationError, OutOfResources, PTXASError):
        return float("inf")
