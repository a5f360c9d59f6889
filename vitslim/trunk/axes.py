"""The three independent choices of a step and their dense defaults.

A method gives a step another ``Mixing`` (how the attention branch gets its output), another ``TokenRule`` (who takes
part) or another ``Weights`` (whose parameters). None of them knows of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from vitslim.models import BlockAdapter, Context, DenseTrace, TokenLayout
from vitslim.trunk.stream import Stream, TokenState

Attention = Literal["dense", "reuse", "sparse", "sliced", "other"]


@dataclass(frozen=True)
class BoundBlock:
    """A block as one step sees it: the verbs of ``BlockAdapter`` without the block argument, for the active tokens.

    Args:
        token_state: which tokens are active; ``None`` when all are, in natural order.
        normed: tokens, and the attention input that has been made of just these.
    """

    adapter: BlockAdapter
    block: nn.Module
    token_state: TokenState | None = None
    normed: tuple[Tensor, Tensor] | None = None

    def attention_input(self, tokens: Tensor) -> Tensor:
        if self.normed is not None and self.normed[0] is tokens:
            return self.normed[1]
        return self.adapter.attention_input(self.block, tokens)

    def attention_norm(self) -> nn.LayerNorm | None:
        return self.adapter.attention_norm(self.block)

    def attend(self, attention_input: Tensor, context: Context) -> Tensor:
        if self.token_state is None or self.adapter.own_bias(self.block) is None:
            return self.adapter.attend(self.block, attention_input, context)
        # timm's module would add its bias for all tokens.
        query, key, value = self.queries_keys_values(attention_input, context)
        bias = self.attention_bias(context, key.shape[2])
        return self.merge_heads(attention_input, self.mix(query, key, value, bias))

    def mix(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        return self.adapter.mix(self.block, query, key, value, bias)

    def add_attention(self, tokens: Tensor, z: Tensor) -> Tensor:
        return self.adapter.add_attention(self.block, tokens, z)

    def add_mlp(self, tokens: Tensor) -> Tensor:
        return self.adapter.add_mlp(self.block, tokens)

    def queries_keys_values(self, attention_input: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        return self.adapter.queries_keys_values(self.block, attention_input, context)

    def attention_bias(self, context: Context, tokens: int) -> Tensor | None:
        own = self.adapter.own_bias(self.block)
        if self.token_state is None or own is None:
            return self.adapter.attention_bias(self.block, context, tokens)
        # The context has been selected already, what the block itself holds has not.
        own = self.token_state.select_pairs(own)
        given = self.adapter.context_bias(self.block, context, tokens)
        return own if given is None else own + given

    def merge_heads(self, attention_input: Tensor, mixed: Tensor) -> Tensor:
        return self.adapter.merge_heads(self.block, attention_input, mixed)

    @property
    def scale(self) -> float:
        return self.adapter.scale(self.block)


@dataclass(frozen=True)
class LastLinear:
    """A linear layer at the end of a new module, whose best weights are known in closed form.

    Args:
        layer: shall map ``inputs`` to ``targets`` in the least-squares sense.
        inputs: what the layer reads when the module reads what the dense model computed.
        targets: what it should then give.
    """

    layer: nn.Linear
    inputs: Float[Tensor, "s f"]
    targets: Float[Tensor, "s d"]


class Axis(nn.Module):
    """What the three kinds of choices have in common."""

    fitted_apart: bool = False
    """Whether ``local_loss`` alone fits its parameters, because no gradient of the model's outputs reaches them."""

    chooses: bool = False
    """Whether it picks tokens or keys by comparing numbers, which rounding may turn."""

    needs_one_size: str = ""
    """Why a file of free image size cannot hold it, in words; empty where it can."""

    def local_loss(self, step: int, dense: DenseTrace) -> Tensor | None:
        """How badly new parameters imitate the dense model, given the dense model's own inputs.

        Args:
            step: the dense block in whose place the step stands.

        Returns:
            A relative squared error (0 is perfect, 1 as bad as a constant), or ``None`` without new parameters.
        """
        return None

    def last_linears(self, step: int, dense: DenseTrace) -> list[LastLinear]:
        """The regressions that ``local_loss`` is for the last linear layers alone."""
        return []

    def describe(self) -> str:
        """A few words for lists and plans."""
        raise NotImplementedError


class Mixing(Axis):
    """Axis 1: how a step obtains Z, the output of its attention branch."""

    attention: Attention = "other"
    """The kind of attention, for whatever reads a plan; ``describe`` is for people."""

    uses_attention: bool = True
    """Whether the block's own attention is evaluated; where no step does, its weights are dropped."""

    reads_z: bool = False
    """Whether it reads ẑ of the step before; otherwise that is not kept up while tokens come and go."""

    reads_grid: bool = False
    """Whether it reads ẑ of every patch, also of those that wait."""

    whole_grid: bool = False
    """Whether it works on all tokens in natural order alone."""

    def forward(
        self, bound: BoundBlock, tokens: Float[Tensor, "b n d"], stream: Stream
    ) -> tuple[Float[Tensor, "b n d"], Stream]:
        """Z for the active tokens, and the stream with what later steps may want of it."""
        raise NotImplementedError


class DenseMixing(Mixing):
    """The block's own attention, as timm computes it."""

    attention = "dense"

    def forward(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        attention_input = bound.attention_input(tokens)
        if not stream.wants_class_attention:
            z = bound.attend(attention_input, stream.context)
            return z, replace(stream, z=z)
        return self._with_class_row(bound, attention_input, stream)

    def describe(self) -> str:
        return "dense"

    def _with_class_row(self, bound: BoundBlock, attention_input: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        # The operands serve twice: fused attention for all rows, one small product for the class row.
        query, key, value = bound.queries_keys_values(attention_input, stream.context)
        bias = bound.attention_bias(stream.context, key.shape[2])
        row = bound.adapter.class_row(query, key, bias, bound.scale)
        z = bound.merge_heads(attention_input, bound.mix(query, key, value, bias))
        return z, replace(stream, z=z, class_attention=row)


class TokenRule(Axis):
    """Axis 2: who takes part in a step. The default: everybody."""

    wants_class_attention: bool = False

    selects: bool = False
    """Whether other tokens may be active from this step's entry on."""

    reduces: bool = False
    """Whether some tokens take no part in this step."""

    reads_row_before: bool = False
    """Whether it chooses by the class row of the very step before, which therefore has to attend."""

    has_early_form: bool = False
    """Whether its method chooses in another way early in training."""

    def choose_early_(self, early: bool) -> None:
        """Choose as the method does early in training, or as it does from then on; see ``Trunk.choose_early_``."""

    def settle_(self, index: int, steps: Sequence[nn.Module]) -> None:
        """Look once at the whole plan that this rule, the one of step ``index``, is part of."""

    def enter(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        """Before the step: choose the active tokens."""
        return tokens, stream

    def leave(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        """After the step: let the others follow, or come back."""
        return tokens, stream

    def patches_kept(self, layout: TokenLayout) -> int:
        """How many patches take part in this step."""
        return layout.patches

    def describe(self) -> str:
        return "all"

    def describe_for(self, layout: TokenLayout) -> str:
        """The same with the numbers at this image size."""
        return self.describe()


class Weights(Axis):
    """Axis 3: whose weights a step runs with. The default: the block's own."""

    def bind(self, bound: BoundBlock) -> BoundBlock:
        """The block as this step sees it."""
        return bound

    def finish(self, tokens: Tensor) -> Tensor:
        """What follows after the block's two branches in this step alone."""
        return tokens

    def describe(self) -> str:
        return "own"
