"""Sliced group attention: patch tokens attend within their slice of the sequence.

Source: Shen et al., "Sliced Recursive Transformer", ECCV 2022, arXiv 2111.05297. Prefix tokens (class, distillation,
registers) are ours, since the authors' network has none: they are keys of every slice and attend to all.
"""

import hashlib
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Fused attention of queries, keys, values (b, h, ., e) and a bias that broadcasts to (b, h, ., .)."""


def sliced_attention(
    attend: Attend,
    query: Float[Tensor, "b h n e"],
    key: Float[Tensor, "b h n e"],
    value: Float[Tensor, "b h n f"],
    groups: int,
    *,
    prefix: int = 0,
    bias: Tensor | None = None,
) -> Float[Tensor, "b h n f"]:
    """Attention in which a patch token sees the prefix and its own slice of consecutive patch tokens.

    Per head and channel the p patch tokens cost p (prefix + p / groups) products, against p (prefix + p).

    Args:
        attend: ordinary attention, called once for the slices and once for the prefix if there is one.
        groups: number of slices, a divisor of the number of patch tokens.
        prefix: tokens at the front that see everything and are seen by everybody.
        bias: added to the scores, broadcastable to (b, h, n, n), in the order of the tokens.
    """
    # Slices stand beside the heads, so that fused kernels see the four dimensions that they know.
    patches = attend(
        query[:, :, prefix:].unflatten(2, (groups, -1)).flatten(1, 2),
        _keys_of_slices(key, groups, prefix),
        _keys_of_slices(value, groups, prefix),
        None if bias is None else _bias_of_slices(_written_out(bias, query)[:, :, prefix:], groups, prefix),
    )
    patches = patches.unflatten(1, (query.shape[1], groups)).flatten(2, 3)
    if prefix == 0:
        return patches
    rows = None if bias is None else _written_out(bias, query)[:, :, :prefix]
    return torch.cat([attend(query[:, :, :prefix], key, value, rows), patches], dim=2)


def sliced_mask(tokens: int, groups: int, *, prefix: int = 0) -> Bool[Tensor, "n n"]:
    """Which key (column) each query (row) sees; dense attention under it is the readable form of the above."""
    size = (tokens - prefix) // groups
    slices = torch.arange(tokens - prefix) // size
    mask = torch.ones(tokens, tokens, dtype=torch.bool)
    mask[prefix:, prefix:] = slices[:, None] == slices[None, :]
    return mask


def seeded_permutation(count: int, seed: int) -> list[int]:
    """A permutation of 0 .. count - 1, the same on every machine and with every version of torch."""
    return sorted(range(count), key=lambda place: hashlib.sha256(f"{seed}:{place}".encode()).digest())


def _keys_of_slices(keys: Tensor, groups: int, prefix: int) -> Tensor:
    own = keys[:, :, prefix:].unflatten(2, (groups, -1))
    if prefix == 0:
        return own.flatten(1, 2)
    common = keys[:, :, None, :prefix].expand(-1, -1, groups, -1, -1)
    return torch.cat([common, own], dim=3).flatten(1, 2)


def _written_out(bias: Tensor, query: Tensor) -> Tensor:
    """The bias with every head and every query: (1 or b, h, n, n)."""
    batch = bias.shape[0] if bias.ndim == 4 else 1
    return bias.expand(batch, query.shape[1], query.shape[2], bias.shape[-1])


def _bias_of_slices(rows: Tensor, groups: int, prefix: int) -> Tensor:
    size = rows.shape[2] // groups
    slices: list[Tensor] = []
    for group in range(groups):
        own, first = rows[:, :, group * size : (group + 1) * size], prefix + group * size
        slices.append(torch.cat([own[..., :prefix], own[..., first : first + size]], dim=-1))
    return torch.stack(slices, dim=2).flatten(1, 2)
