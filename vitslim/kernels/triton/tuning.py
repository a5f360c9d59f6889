"""Block sizes of the attention kernels: a table of measured ones, and a rule where the table has no row.

``blocks.json`` beside this file maps ``kernel/sm/dtype/head width/tokens`` to block sizes; ``autotuning`` measures on
the GPU at hand and rewrites it. The table ships empty: until then everything goes by the rule. Rows are looked up with
the padded width, of queries or values, and the next power of two of the tokens.
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


def blocks_for(kernel: str, query: Tensor, value: Tensor) -> Blocks:
    """The blocks for a kernel on queries (b, h, n, e) and values (b, h, n, f); the wider of the two decides."""
    width, tokens = max(query.shape[3], value.shape[3]), query.shape[2]
    dtype = str(query.dtype).removeprefix("torch.")
    return looked_up(kernel, capability_of(query.device), dtype, max(16, _power_of_two(width)), _power_of_two(tokens))


def row_name(kernel: str, capability: int, dtype: str, width: int, tokens: int) -> str:
    """The key of a row of the table; width and tokens are rounded up to powers of two."""
    return f"{kernel}/sm_{capability}/{dtype}/{max(16, _power_of_two(width))}/{_power_of_two(tokens)}"


def read_table(path: Path | None = None) -> dict[str, Blocks]:
    """The measured rows; those shipped with vitslim by default.

    Raises:
        CheckpointError: the table is not of this version's form.
    """
    path = path or TABLE
    try:
        return {name: Blocks(**row) for name, row in read_json(path)["rows"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is no table of blocks ({error}); write it again with autotune()") from None


def rule(kernel: str, dtype: str, width: int, tokens: int) -> Blocks:
    """Blocks that fit the shared memory of every architecture; reckoned, not measured.

    Args:
        width: padded width of a head, of queries or values, whichever is wider.
    """
    row_bytes = width * (4 if dtype == "float32" else 2)
    wide, backward = row_bytes > 128, kernel.endswith("backward")
    queries = 32 if row_bytes > 256 or (wide and backward) else 64
    # Lists cost a pass over the bits, and on short rows no block of 64 x 64 is ever empty.
    listed = kernel.startswith("bit") and tokens > 1024
    stages = 1 if row_bytes > 256 else 2 if wide or backward else 3
    return Blocks(queries, keys=32 if wide else 64, warps=4, stages=stages, listed=listed)


@cache
def looked_up(kernel: str, capability: int, dtype: str, width: int, tokens: int) -> Blocks:
    """The row of the table, or the rule's blocks."""
    row = read_table().get(row_name(kernel, capability, dtype, width, tokens))
    return row or rule(kernel, dtype, width, tokens)


def capability_of(device: torch.device) -> int:
    """Compute capability, 90 for 9.0; 0 on a CPU."""
    if device.type != "cuda":
        return 0  # Triton's interpreter
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _power_of_two(count: int) -> int:
    return 1 << max(0, count - 1).bit_length()
