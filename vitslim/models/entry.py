"""What a model hands its first block, without running any."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitslim.models.adapter import Context


@dataclass(frozen=True)
class Entry:
    """The tokens that enter the blocks, and the keyword arguments that each of them is given."""

    tokens: Float[Tensor, "b n d"]
    contexts: list[Context]


class _Recorder(nn.Module):
    """Stands where the blocks stood, notes what it is given and passes the tokens on."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[Tensor] = []
        self.contexts: list[Context] = []

    def forward(self, tokens: Tensor, **context: Any) -> Tensor:
        self.tokens.append(tokens)
        self.contexts.append(context)
        return tokens


@torch.no_grad()
def entry(model: nn.Module, images: Float[Tensor, "b c height width"]) -> Entry:
    """Run a model without its blocks, converted or dense."""
    blocks: Any = model.blocks
    recorder = _Recorder()
    try:
        # The same module at each place: it is called as often as there are blocks.
        model.blocks = nn.Sequential(*[recorder] * len(blocks))
        cast(Any, model).forward_features(images)
    finally:
        model.blocks = blocks
    return Entry(recorder.tokens[0], recorder.contexts)
