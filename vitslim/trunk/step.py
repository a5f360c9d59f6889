"""One application of a block, with one module on each axis."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from vitslim.models import DenseTrace
from vitslim.plans import StepPlan
from vitslim.trunk.axes import Attention, AxisModule, BoundBlock, MlpBranch, TokenRule, Weights
from vitslim.trunk.stream import Stream


class Step(nn.Module):
    """What a plan's step is built as.

    Args:
        plan: its choices, of which the four modules are made.
        home: the index under which its block is registered in the trunk; that of a shared block is another's.
        wants_row: whether the class row of its attention is read.
    """

    def __init__(
        self,
        plan: StepPlan,
        home: int,
        attention: Attention,
        tokens: TokenRule,
        mlp: MlpBranch,
        weights: Weights,
        *,
        wants_row: bool,
    ) -> None:
        super().__init__()
        self.plan, self.home, self.wants_row = plan, home, wants_row
        self.attention, self.tokens, self.mlp, self.weights = attention, tokens, mlp, weights

    def seen(self, bound: BoundBlock) -> nn.Module:
        """The block as this step sees it."""
        return self.weights.bind(bound).block

    def forward(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        """Run the step: (b, n, d) active tokens in, (b, n', d) active tokens out."""
        bound = self.weights.bind(bound)
        if not self.plan.attention.reads_z:
            stream = replace(stream, z=None)
        tokens, stream = self.tokens.enter(bound, tokens, stream)
        if stream.token_state is not None:
            bound = replace(bound, token_state=stream.token_state)
            stream = replace(stream, context=stream.token_state.select_context(stream.context))
        row = None if self.wants_row else stream.class_attention
        wants_keys = self.tokens.choice.reads_keys
        stream = replace(stream, wants_class_attention=self.wants_row, class_attention=row, wants_keys=wants_keys)
        tokens, stream = self.attention.add(bound, tokens, stream)
        tokens, stream = self.tokens.between(bound, tokens, stream)
        stream = replace(stream, keys=None)
        return self.weights.finish(self.mlp(bound, tokens)), stream

    def local_loss(self, dense: DenseTrace) -> Tensor | None:
        """The imitation losses of all axes together; ``None`` where there is nothing to fit."""
        losses = [axis.local_loss(self.plan.block, dense) for axis in self.axes]
        present = [loss for loss in losses if loss is not None]
        return torch.stack(present).sum() if present else None

    @property
    def axes(self) -> tuple[AxisModule, ...]:
        return self.attention, self.tokens, self.mlp, self.weights
