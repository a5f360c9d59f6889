"""The plan: which steps a trunk walks, in which order, with which choices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitslim.models import BlockAdapter, DenseTrace, TokenLayout, adapter_for, token_layout
from vitslim.trunk.axes import BoundBlock, DenseMixing, Mixing, TokenRule, Weights
from vitslim.trunk.stream import Stream


class Step(nn.Module):
    """One application of a block, with one choice on each axis.

    Args:
        block: index of the block whose weights it runs, as timm counts them.
        mixing: how the attention branch gets its output.
        tokens: who takes part.
        weights: whose parameters.
    """

    def __init__(
        self,
        block: int,
        mixing: Mixing | None = None,
        tokens: TokenRule | None = None,
        weights: Weights | None = None,
    ) -> None:
        super().__init__()
        self.block = block
        self.mixing = mixing or DenseMixing()
        self.tokens = tokens or TokenRule()
        self.weights = weights or Weights()

    @property
    def is_plain(self) -> bool:
        """Whether it does just what timm's block does."""
        return (type(self.mixing), type(self.tokens), type(self.weights)) == (DenseMixing, TokenRule, Weights)

    def but(
        self, *, mixing: Mixing | None = None, tokens: TokenRule | None = None, weights: Weights | None = None
    ) -> Step:
        """The same step with some choices replaced."""
        return Step(self.block, mixing or self.mixing, tokens or self.tokens, weights or self.weights)

    def forward(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        """Take the step: (b, n, d) active tokens in, (b, n', d) active tokens out."""
        bound = self.weights.bind(bound)
        tokens, stream = self.tokens.enter(bound, tokens, stream)
        if stream.token_state is not None:
            stream = replace(stream, context=stream.token_state.select_context(stream.context))
        stream = replace(stream, wants_class_attention=self.tokens.wants_class_attention)
        z, stream = self.mixing(bound, tokens, stream)
        tokens = bound.add_attention(tokens, z)
        tokens = bound.add_mlp(tokens)
        tokens = self.weights.finish(tokens)
        return self.tokens.leave(bound, tokens, stream)

    def local_loss(self, index: int, dense: DenseTrace) -> Tensor | None:
        """The imitation losses of all three choices together; ``None`` where there is nothing to fit."""
        losses = [axis.local_loss(index, dense) for axis in (self.mixing, self.tokens, self.weights)]
        present = [loss for loss in losses if loss is not None]
        return torch.stack(present).sum() if present else None


@dataclass(frozen=True)
class Conversion:
    """One entry of a model's history: the method's name and its resolved options, as plain data."""

    method: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Plan:
    """What a method receives and returns: the blocks there are, and the steps over them.

    Args:
        adapter: speaks to the blocks.
        layout: tokens at the model's image size.
        width: embedding dimension d.
        blocks: the unique blocks by their timm index.
        steps: one per application, in order.
        history: the conversions so far.
    """

    adapter: BlockAdapter
    layout: TokenLayout
    width: int
    blocks: Mapping[int, nn.Module]
    steps: tuple[Step, ...]
    history: tuple[Conversion, ...] = ()

    @property
    def depth(self) -> int:
        return len(self.steps)

    @property
    def device(self) -> torch.device:
        return next(next(iter(self.blocks.values())).parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(next(iter(self.blocks.values())).parameters()).dtype

    def with_steps(self, changed: Mapping[int, Step]) -> Plan:
        """The same plan with some steps replaced."""
        return replace(self, steps=tuple(changed.get(index, step) for index, step in enumerate(self.steps)))


def dense_plan(model: nn.Module) -> Plan:
    """The plan of a dense timm model: every block once, in order, as it is.

    Raises:
        UnsupportedModelError: no adapter knows the model.
    """
    blocks = dict(enumerate(cast("list[nn.Module]", list(model.blocks))))  # pyright: ignore[reportArgumentType]
    return Plan(
        adapter=adapter_for(model),
        layout=token_layout(model),
        width=int(model.embed_dim),  # pyright: ignore[reportArgumentType]
        blocks=blocks,
        steps=tuple(Step(index) for index in blocks),
    )
