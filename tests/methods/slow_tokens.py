"""One image through a plain ViT, token by token and head by head, with something done between attention and MLP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Token:
    """One token.

    Args:
        patches: the natural indices of the patches that it stands for; none for a prefix or fused token.
    """

    value: Tensor
    patches: list[int] = field(default_factory=list)
    is_prefix: bool = False
    attention: float = 0.0
    """Of the class token, mean over heads."""
    key: Tensor | None = None
    """Mean over heads."""


Between = Callable[[int, list[Token]], list[Token]]


def slow_tokens(model: nn.Module, image: Tensor, between: Between, *, weigh: bool) -> list[Token]:
    """The tokens behind all blocks.

    Args:
        weigh: a key counts as often as it has patches.
    """
    embedded = model._pos_embed(model.patch_embed(image[None]))[0]
    prefix = model.num_prefix_tokens
    tokens = [Token(row, [], True) for row in embedded[:prefix]]
    tokens += [Token(row, [patch]) for patch, row in enumerate(embedded[prefix:])]
    for index, block in enumerate(model.blocks):
        attend(block, tokens, weigh)
        tokens = between(index, tokens)
        for token in tokens:
            token.value = token.value + block.mlp(block.norm2(token.value))
    return tokens


def attend(block: nn.Module, tokens: list[Token], weigh: bool) -> None:
    attn = block.attn
    heads, width = attn.num_heads, attn.head_dim
    parts = [attn.qkv(block.norm1(token.value)).view(3, heads, width) for token in tokens]
    mixed = [torch.zeros(heads, width) for _ in tokens]
    for token in tokens:
        token.attention = 0.0
    for head in range(heads):
        for index, own in enumerate(parts):
            raw = torch.stack([own[0, head] @ other[1, head] * width**-0.5 for other in parts]).exp()
            if weigh:
                raw = raw * torch.tensor([float(max(1, len(token.patches))) for token in tokens])
            row = raw / raw.sum()
            mixed[index][head] = sum(weight * other[2, head] for weight, other in zip(row, parts, strict=True))
            if index == 0:
                for token, weight in zip(tokens, row, strict=True):
                    token.attention += float(weight) / heads
    for token, part, mix in zip(tokens, parts, mixed, strict=True):
        token.key = part[1].mean(dim=0)
        token.value = token.value + attn.proj(mix.flatten())
