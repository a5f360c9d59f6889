"""What the custom ops cost by their definition, in multiply-accumulates.

The reference forms compute more than this and mask it away; how long a form takes, only a clock can tell.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from vitslim.kernels.sparse_attention import tile_count

Shape = tuple[int, ...]


def sparse_attention_macs(
    query: Shape, key: Shape, value: Shape, kept: Shape, bias: Shape | None, tile: int, prefix: int, scale: float
) -> int:
    """Q Kᵀ and A V on the kept pairs alone: all keys for the prefix queries, the kept ones for the patch queries."""
    images, heads, queries, width = query
    pairs = prefix * key[2] + (queries - prefix) * kept[-1]
    return images * heads * pairs * (width + value[-1])


def kept_keys_macs(coefficients: Shape, basis: Shape, top: int, keys: int, tile: int, prefix: int) -> int:
    """Coefficients times basis, on the coefficients that count; entries of the basis that are zero count in full."""
    images, heads, patches, directions = coefficients
    # The sum over a tile's rows has no more entries than the rows together.
    entries = min(directions, top * tile)
    return images * heads * tile_count(patches, tile) * entries * basis[-1]


def op_macs() -> Mapping[Any, Callable[..., int]]:
    """The cost of the custom ops that a count meets, as functions of their own arguments with shapes for tensors.

    Models are counted on the meta device, where the ops that only GPUs get are not called.
    """
    ops = torch.ops.vitslim
    return {ops.sparse_attention: sparse_attention_macs, ops.kept_keys: kept_keys_macs}
