"""Sliced group attention: patch tokens attend within their slice of the sequence.

Source: Shen et al., "Sliced Recursive Transformer", ECCV 2022, arXiv 2111.05297, section 3.4. Prefix tokens (class,
distillation, registers) are ours, since the authors' network has none: they are keys of every slice and attend to all.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def sliced_attention(
    query: Float[Tensor, "b h n e"],
    key: Float[Tensor, "b h n e"],
    value: Float[Tensor, "b h n f"],
    groups: int,
    *,
    prefix: int = 0,
    bias: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "b h n f"]:
    """Attention in which a patch token sees the prefix and its own slice of consecutive patch tokens.

    It costs p (prefix + p / groups) products per head and channel for the p patch tokens, against p (prefix + p).

    Args:
        groups: number of slices, a divisor of the number of patch tokens.
        prefix: tokens at the front that see everything and are seen by everybody.
        bias: added to the scores, broadcastable to (b, h, n, n), in the order of the tokens.
        scale: factor of the scores; e^-½ by default.
        dropout: rate at which attention weights are dropped, 0..1.
    """
    heads = query.shape[1]
    # Slices stand beside the heads, so that fused kernels see the four dimensions that they know.
    mixed = F.scaled_dot_product_attention(
        query[:, :, prefix:].unflatten(2, (groups, -1)).flatten(1, 2),
        _keys_of_slices(key, groups, prefix),
        _keys_of_slices(value, groups, prefix),
        attn_mask=None if bias is None else _bias_of_slices(bias, query, groups, prefix),
        dropout_p=dropout,
        scale=scale,
    )
    patches = mixed.unflatten(1, (heads, groups)).flatten(2, 3)
    if prefix == 0:
        return patches
    front = F.scaled_dot_product_attention(
        query[:, :, :prefix],
        key,
        value,
        attn_mask=None if bias is None else _all_rows(bias, query)[:, :, :prefix].to(query.dtype),
        dropout_p=dropout,
        scale=scale,
    )
    return torch.cat([front, patches], dim=2)


def sliced_mask(tokens: int, groups: int, *, prefix: int = 0) -> Bool[Tensor, "n n"]:
    """Which key (column) each query (row) sees; with it dense masked attention is the readable form of the above."""
    size = (tokens - prefix) // groups
    slices = torch.arange(tokens - prefix) // size
    mask = torch.ones(tokens, tokens, dtype=torch.bool)
    mask[prefix:, prefix:] = slices[:, None] == slices[None, :]
    return mask


def seeded_permutation(count: int, seed: int) -> list[int]:
    """A permutation of 0..count-1 that is the same on every machine and with every version of torch."""
    return sorted(range(count), key=lambda place: hashlib.sha256(f"{seed}:{place}".encode()).digest())


def _keys_of_slices(keys: Tensor, groups: int, prefix: int) -> Tensor:
    own = keys[:, :, prefix:].unflatten(2, (groups, -1))
    if prefix == 0:
        return own.flatten(1, 2)
    shared = keys[:, :, None, :prefix].expand(-1, -1, groups, -1, -1)
    return torch.cat([shared, own], dim=3).flatten(1, 2)


def _all_rows(bias: Tensor, query: Tensor) -> Tensor:
    """The bias with every head and every query written out: (1 or b, h, n, n)."""
    batch = bias.shape[0] if bias.ndim == 4 else 1
    return bias.expand(batch, query.shape[1], query.shape[2], bias.shape[-1])


def _bias_of_slices(bias: Tensor, query: Tensor, groups: int, prefix: int) -> Tensor:
    rows = _all_rows(bias, query)[:, :, prefix:]
    size = rows.shape[2] // groups
    slices: list[Tensor] = []
    for group in range(groups):
        own = rows[:, :, group * size : (group + 1) * size]
        start = prefix + group * size
        slices.append(torch.cat([own[..., :prefix], own[..., start : start + size]], dim=-1))
    return torch.stack(slices, dim=2).flatten(1, 2).to(query.dtype)
