"""Block sizes of attention and matrix products: a table of measured ones, and a rule where the table has no row.

``blocks.json`` beside this file maps ``kernel/sm/dtype/head width/tokens`` to the blocks of attention, and
``kernel/sm/dtype/inner x columns x rank/rows`` to the tiles of a product; ``autotuning`` measures on the GPU at hand
and rewrites it. The table ships empty: until then everything goes by the rules. Rows are looked up with the padded
width, of queries or values, or rank, and the next power of two of the tokens or rows.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitslim.errors import CheckpointError
from vitslim.files import read_json

TABLE = Path(__file__).with_name("blocks.json")


@dataclass(frozen=True)
class Blocks:
    """How one kernel is cut.

    Args:
        queries: queries of a program, 16 or more, a power of two.
        keys: keys of a visit, 32 or more, a power of two.
        warps: groups of 32 threads of a program.
        stages: depth of the software pipeline; each stage holds one block of keys and values in shared memory.
        listed: make lists of the blocks that somebody sees, and visit only these; for the bit-masked kernels.
    """

    queries: int
    keys: int
    warps: int
    stages: int
    listed: bool = False

    def options(self) -> dict[str, Any]:
        """What the launch takes besides the constants."""
        return {"num_warps": self.warps, "num_stages": self.stages}


@dataclass(frozen=True)
class Tiles:
    """How a matrix product is cut.

    Args:
        rows: of the result that a program owns, 16 or more; a power of two, as the next two.
        columns: of the result that a program owns, 16 or more.
        depth: entries of a row and of a column that a visit multiplies, 16 or more.
        warps: groups of 32 threads of a program.
        stages: depth of the software pipeline; each stage holds one block of each matrix in shared memory.
    """

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int

    def options(self) -> dict[str, Any]:
        """What the launch takes besides the constants."""
        return {"num_warps": self.warps, "num_stages": self.stages}


ENOUGH_PROGRAMS = 80
"""Most of an H100's 132 SMs. A program reads its rows, its columns and A: tiles half as large, twice as many, would
employ the others, but read more together."""

TILE_SIDES = ((64, 128), (64, 64), (32, 64), (32, 32), (16, 32))
"""Rows and columns of a tile, from many rows to few."""

_SHARED_BYTES = 96 * 1024  # what every architecture has for one program


def blocks_for(kernel: str, query: Tensor, value: Tensor) -> Blocks:
    """The blocks for a kernel on queries (b, h, n, e) and values (b, h, n, f); the wider of the two decides."""
    width, tokens = max(query.shape[3], value.shape[3]), query.shape[2]
    dtype = str(query.dtype).removeprefix("torch.")
    return looked_up(kernel, capability_of(query.device), dtype, max(16, _power_of_two(width)), _power_of_two(tokens))


def row_name(kernel: str, capability: int, dtype: str, width: int, tokens: int) -> str:
    """The key of a row of the table; width and tokens are rounded up to powers of two."""
    return f"{kernel}/sm_{capability}/{dtype}/{max(16, _power_of_two(width))}/{_power_of_two(tokens)}"


def tiles_for(kernel: str, tokens: Tensor, weight: Tensor, rank: int) -> Tiles:
    """The tiles for a kernel that maps tokens (m, i) by a matrix (o, i) and a residual of some rank."""
    shape = (*weight.shape[::-1], max(16, _power_of_two(rank)))
    dtype = str(tokens.dtype).removeprefix("torch.")
    return looked_up_tiles(kernel, capability_of(tokens.device), dtype, shape, _power_of_two(tokens.shape[0]))


def tiles_row_name(kernel: str, capability: int, dtype: str, shape: tuple[int, int, int], rows: int) -> str:
    """The key of a row of the table; ``shape`` is inner, columns and rank, the rank and rows are rounded up."""
    inner, columns, rank = shape
    padded = f"{inner}x{columns}x{max(16, _power_of_two(rank))}"
    return f"{kernel}/sm_{capability}/{dtype}/{padded}/{_power_of_two(rows)}"


def read_table(path: Path | None = None) -> dict[str, Blocks | Tiles]:
    """The measured rows; those shipped with vitslim by default.

    Raises:
        CheckpointError: the table is not of this version's form.
    """
    path = path or TABLE
    try:
        rows = read_json(path)["rows"]
        return {name: Tiles(**row) if "depth" in row else Blocks(**row) for name, row in rows.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no table of blocks ({error}); write it again with autotune()") from None


def rule(kernel: str, dtype: str, width: int, tokens: int) -> Blocks:
    """Blocks that fit the shared memory of every architecture; reckoned, not measured.

    Args:
        width: padded width of a head, of queries or values, whichever is wider.
    """
    row_bytes = width * (4 if dtype == "float32" else 2)
    wide, backward = row_bytes > 128, kernel.endswith("backward")
    # The backward of float32 as wide as it goes spills with 32 queries: 8 KB a thread for values of 128 beside queries
    # of 32.
    widest = row_bytes > 256
    queries = 16 if widest and backward else 32 if widest or (wide and backward) else 64
    # Lists cost a pass over the bits, and on short rows no block of 64 x 64 is ever empty.
    listed = kernel.startswith("bit") and tokens > 1024
    stages = 1 if widest else 2 if wide or backward else 3
    return Blocks(queries, keys=32 if wide else 64, warps=4, stages=stages, listed=listed)


def tile_rule(dtype: str, shape: tuple[int, int, int], rows: int) -> Tiles:
    """Tiles that fit the shared memory of every architecture, small enough to employ the GPU; reckoned, not measured.

    Args:
        shape: inner, columns, padded rank.
    """
    _, columns, rank = shape
    is_float32 = dtype == "float32"
    # The three passes of float32 would spill in large tiles and long visits.
    sides = TILE_SIDES[2:] if is_float32 else TILE_SIDES
    tall, wide = next(
        (one for one in sides if -(-rows // one[0]) * -(-columns // one[1]) >= ENOUGH_PROGRAMS), TILE_SIDES[-1]
    )
    lines = tall + wide + rank
    # Few lines are walked in longer visits: fewer waits for memory.
    depth, line_bytes = (32, 128) if is_float32 else (128, 256) if lines <= 128 else (64, 128)
    return Tiles(
        tall,
        wide,
        depth=depth,
        warps=8 if tall * (wide + rank) > (4096 if is_float32 else 8192) else 4,
        stages=min(4, _SHARED_BYTES // (lines * line_bytes)),
    )


@cache
def looked_up(kernel: str, capability: int, dtype: str, width: int, tokens: int) -> Blocks:
    """The row of the table, or the rule's blocks."""
    row = read_table().get(row_name(kernel, capability, dtype, width, tokens))
    return row if isinstance(row, Blocks) else rule(kernel, dtype, width, tokens)


@cache
def looked_up_tiles(kernel: str, capability: int, dtype: str, shape: tuple[int, int, int], rows: int) -> Tiles:
    """The row of the table, or the rule's tiles."""
    row = read_table().get(tiles_row_name(kernel, capability, dtype, shape, rows))
    return row if isinstance(row, Tiles) else tile_rule(dtype, shape, rows)


def forget() -> None:
    """Read the table anew at the next question."""
    looked_up.cache_clear()
    looked_up_tiles.cache_clear()


def capability_of(device: torch.device) -> int:
    """Compute capability, 90 for 9.0; 0 on a CPU."""
    if device.type != "cuda":
        return 0  # Triton's interpreter
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()
