"""The plan: which steps a trunk walks, in which order, with which choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitslim.errors import ConfigError
from vitslim.models import BlockAdapter, DenseTrace, TokenLayout, adapter_for, token_layout
from vitslim.trunk.axes import BoundBlock, DenseMixing, LastLinear, Mixing, TokenRule, Weights
from vitslim.trunk.stream import Stream


class Step(nn.Module):
    """One application of a block, with one choice on each axis.

    Args:
        block: index of the block whose weights it runs, as timm counts them.
        mixing: how the attention branch gets its output.
        tokens: who takes part.
        weights: whose parameters.
        origin: the dense block in whose place the step stands; ``block`` by default.
    """

    def __init__(
        self,
        block: int,
        mixing: Mixing | None = None,
        tokens: TokenRule | None = None,
        weights: Weights | None = None,
        origin: int | None = None,
    ) -> None:
        super().__init__()
        self.block = block
        self.origin = block if origin is None else origin
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
        return Step(self.block, mixing or self.mixing, tokens or self.tokens, weights or self.weights, self.origin)

    def seen(self, bound: BoundBlock) -> nn.Module:
        """The block as this step sees it."""
        return self.weights.bind(bound).block

    def forward(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        """Take the step: (b, n, d) active tokens in, (b, n', d) active tokens out."""
        bound = self.weights.bind(bound)
        if not self.mixing.reads_z:
            stream = replace(stream, z=None)
        norm = bound.attention_norm() if self.mixing.uses_attention else None
        tokens, stream = self.tokens.enter(bound, tokens, replace(stream, attention_norm=norm))
        if stream.attention_input is not None:
            bound = replace(bound, normed=(tokens, stream.attention_input))
        stream = replace(stream, attention_norm=None, attention_input=None)
        if stream.token_state is not None:
            bound = replace(bound, token_state=stream.token_state)
            stream = replace(stream, context=stream.token_state.select_context(stream.context))
        wanted = self.tokens.wants_class_attention
        row = None if wanted else stream.class_attention
        stream = replace(stream, wants_class_attention=wanted, class_attention=row)
        z, stream = self.mixing(bound, tokens, stream)
        tokens = bound.add_attention(tokens, z)
        tokens = bound.add_mlp(tokens)
        tokens = self.weights.finish(tokens)
        return self.tokens.leave(bound, tokens, stream)

    def local_loss(self, dense: DenseTrace) -> Tensor | None:
        """The imitation losses of all three choices together; ``None`` where there is nothing to fit."""
        losses = [axis.local_loss(self.origin, dense) for axis in (self.mixing, self.tokens, self.weights)]
        present = [loss for loss in losses if loss is not None]
        return torch.stack(present).sum() if present else None

    def last_linears(self, dense: DenseTrace) -> list[LastLinear]:
        """The closed-form regressions of all three choices."""
        axes = (self.mixing, self.tokens, self.weights)
        return [one for axis in axes for one in axis.last_linears(self.origin, dense)]


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
        weights_follow: all weights will be read from a file, so a start that is dear to compute may be left out.
    """

    adapter: BlockAdapter
    layout: TokenLayout
    width: int
    blocks: Mapping[int, nn.Module]
    steps: tuple[Step, ...]
    history: tuple[Conversion, ...] = ()
    weights_follow: bool = False

    @property
    def depth(self) -> int:
        return len(self.steps)

    @property
    def device(self) -> torch.device:
        return next(next(iter(self.blocks.values())).parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(next(iter(self.blocks.values())).parameters()).dtype

    @property
    def ruled_step(self) -> int | None:
        """The first step at which a token rule of some method reduces, or else stands; ``None`` where none does."""
        ruled = [index for index, step in enumerate(self.steps) if type(step.tokens) is not TokenRule]
        return next((index for index in ruled if self.steps[index].tokens.reduces), ruled[0] if ruled else None)

    def with_steps(self, changed: Mapping[int, Step]) -> Plan:
        """The same plan with some steps replaced."""
        return replace(self, steps=tuple(changed.get(index, step) for index, step in enumerate(self.steps)))


def settle_(steps: Sequence[Step]) -> None:
    """Let every token rule look at the whole plan, once it is complete.

    Raises:
        ConfigError: see ``check_reuse``; nothing has changed then.
    """
    check_reuse(steps)
    for index, step in enumerate(steps):
        step.tokens.settle_(index, steps)


def check_reuse(steps: Sequence[Step]) -> None:
    """Refuse a step that reads ẑ of tokens which have none, because they took no part in the step before.

    Also refuse one that works on the whole grid after the tokens were sorted, and one that chooses tokens by the
    attention of a step that has none.

    Raises:
        ConfigError: with the two steps.
    """
    choosing = next((index for index, step in enumerate(steps) if step.tokens.selects), len(steps))
    for index, step in enumerate(steps[choosing:], start=choosing):
        if step.mixing.whole_grid:
            raise ConfigError(
                f"step {index} ({step.mixing.describe()}) works on the whole grid, but from step {choosing} on "
                f"({steps[choosing].tokens.describe()}) the tokens are sorted; keep such steps before it"
            )
    for index, step in enumerate(steps):
        if step.tokens.reads_row_before and not (index and steps[index - 1].mixing.uses_attention):
            before = steps[index - 1].mixing.describe() if index else "there is none"
            raise ConfigError(
                f"step {index} ({step.tokens.describe()}) chooses patches by the attention of the step before it, "
                f"which computes none ({before}); let that step attend"
            )
    # Whether ẑ of the step before is known for every token: it took all, or handed on what it had read for all.
    whole = True
    for index, step in enumerate(steps):
        mixing, tokens = step.mixing, step.tokens
        same = tokens.reduces and not tokens.selects
        if mixing.reads_z and not whole and (mixing.reads_grid or not same):
            raise ConfigError(
                f"step {index} ({mixing.describe()}) wants the attention output of tokens that took no part in step "
                f"{index - 1} ({steps[index - 1].tokens.describe()}); start the run of reusing steps right after a "
                "step in which all tokens take part"
            )
        whole = not tokens.reduces or (mixing.reads_z and whole)


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
