"""Masks over keys as words of 32 bits."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

BITS = 32
"""Keys of a word; the first is its lowest bit."""


def packed_bits(mask: Bool[Tensor, "*r n"]) -> Int[Tensor, "*r w"]:
    """Words of 32 columns each, the last filled up with zeros."""
    words = F.pad(mask, (0, -mask.shape[-1] % BITS)).unflatten(-1, (-1, BITS))
    # Bit 31 is the sign, so the sum is taken in 64 bits and cut.
    return (words.long() << torch.arange(BITS, device=mask.device)).sum(dim=-1).to(torch.int32)


def unpacked_bits(bits: Int[Tensor, "*r w"], tokens: int) -> Bool[Tensor, "*r n"]:
    """The mask of so many columns that ``packed_bits`` packed."""
    places = torch.arange(BITS, device=bits.device, dtype=torch.int32)
    return ((bits[..., None] >> places) & 1).flatten(-2)[..., :tokens].bool()


def bits_of_keys(kept: Int[Tensor, "b h t k"], tokens: int) -> Int[Tensor, "b h t w"]:
    """The bits of key indices."""
    none = torch.zeros(*kept.shape[:3], tokens, dtype=torch.bool, device=kept.device)
    return packed_bits(none.scatter(-1, kept, True))
