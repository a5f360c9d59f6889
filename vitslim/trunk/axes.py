"""The modules of a step, one for each axis of its plan, and their dense forms."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitslim.models import BlockAdapter, Context, DenseTrace
from vitslim.plans import AllTokens, TokenChoice
from vitslim.trunk.stream import Stream, TokenState


@dataclass(frozen=True)
class BoundBlock:
    """A block as one step sees it: ``BlockAdapter`` without the block argument, for the active tokens.

    Args:
        token_state: which tokens are active; ``None`` when all are, in natural order.
    """

    adapter: BlockAdapter
    block: nn.Module
    token_state: TokenState | None = None

    def attention_input(self, tokens: Tensor) -> Tensor:
        return self.adapter.attention_input(self.block, tokens)

    def attend(self, attention_input: Tensor, context: Context) -> Tensor:
        state = self.token_state
        if state is None or (state.key_bias() is None and self.adapter.own_bias(self.block) is None):
            return self.adapter.attend(self.block, attention_input, context)
        # timm's module would add its own bias for all tokens, and none for the keys.
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
        if self.token_state is None:
            return self.adapter.attention_bias(self.block, context, tokens)
        # The context has been selected already, what the block itself holds has not.
        own = self.adapter.own_bias(self.block)
        own = None if own is None else self.token_state.select_pairs(own)
        terms = own, self.adapter.context_bias(self.block, context, tokens), self.token_state.key_bias()
        present = [term for term in terms if term is not None]
        return functools.reduce(torch.add, present) if present else None

    def merge_heads(self, attention_input: Tensor, mixed: Tensor) -> Tensor:
        return self.adapter.merge_heads(self.block, attention_input, mixed)

    @property
    def scale(self) -> float:
        return self.adapter.scale(self.block)


@dataclass(frozen=True)
class FitBatch:
    """One batch as a module sees it that is fitted in closed form: what it reads in the student, and the teacher.

    The student's front is fitted already, so what is read here is what the module will read. A module is to lead the
    student's tokens back to where the teacher's stream is; where tokens have no counterpart there, because some were
    sorted or merged, it is to do what the dense blocks make of the same tokens.

    Args:
        bound: the student's block as the step sees it; with ``tokens`` and ``stream`` the arguments of the module.
        block: the dense block of the step.
        dense_tokens: what enters it in the teacher, in natural order.
        dense_blocks: the teacher's.
        contexts: keyword arguments that timm gave each of them.
        known: what enters each of them in the teacher, and what leaves the last, where that is kept.
    """

    bound: BoundBlock
    tokens: Float[Tensor, "b n d"]
    stream: Stream
    block: int
    dense_tokens: Float[Tensor, "b m d"]
    dense_blocks: Sequence[nn.Module]
    contexts: Sequence[Context]
    known: Sequence[Tensor] | None = None

    @property
    def dense_bound(self) -> BoundBlock:
        """The teacher's block, for the student's tokens."""
        return self._dense(self.block)

    def dense_z(self) -> Float[Tensor, "b n d"]:
        """Z of the teacher's attention for the student's tokens."""
        return self._z(self.dense_bound, self.block, self.tokens)

    def natural_z(self) -> Float[Tensor, "b m d"]:
        """Z of the teacher for its own tokens."""
        return self._z(replace(self.dense_bound, token_state=None), self.block, self.dense_tokens)

    def target_z(self) -> Float[Tensor, "b n d"]:
        """Z that leads the student's tokens to the teacher's stream behind its attention branch."""
        bound, z = self.dense_bound, self.dense_z()
        if self._is_apart:
            return z
        wanted = bound.add_attention(self.dense_tokens, self.natural_z())
        drift = bound.adapter.z_that_adds(bound.block, wanted - bound.add_attention(self.tokens, z))
        return z if drift is None else z + drift

    def target_mlp_output(self) -> Float[Tensor, "b n d"]:
        """What the MLP's output map should give to lead the student's tokens to the teacher's stream."""
        bound = self.dense_bound
        adapter, block = bound.adapter, bound.block
        output = adapter.mlp_output(block)(adapter.hidden_activations(block, self.tokens))
        drift = adapter.mlp_output_that_adds(block, self.dense_mlp_outputs() - bound.add_mlp(self.tokens))
        return output if drift is None else output + drift

    def dense_mlp_outputs(self) -> Float[Tensor, "b n d"]:
        """The tokens behind the teacher's MLP branch."""
        return self.dense_bound.add_mlp(self.tokens) if self._is_apart else self.dense_outputs(self.block)

    def dense_outputs(self, through: int, *, attention_only: bool = False) -> Float[Tensor, "b n d"]:
        """The tokens behind the teacher's block ``through``, or behind the attention branch of the step's own."""
        if self.known is not None and not attention_only and not self._is_apart:
            return self.known[through + 1]
        tokens = self.tokens if self._is_apart else self.dense_tokens
        for block in range(self.block, through + 1):
            bound = self._dense(block)
            tokens = bound.add_attention(tokens, self._z(bound, block, tokens))
            tokens = tokens if attention_only else bound.add_mlp(tokens)
        return tokens

    @property
    def _is_apart(self) -> bool:
        return self.stream.token_state is not None

    def _dense(self, block: int) -> BoundBlock:
        return replace(self.bound, block=self.dense_blocks[block])

    def _z(self, bound: BoundBlock, block: int, tokens: Tensor) -> Tensor:
        state, context = bound.token_state, self.contexts[block]
        return bound.attend(bound.attention_input(tokens), context if state is None else state.select_context(context))


@dataclass(frozen=True)
class Regression:
    """A linear layer whose best weights are known in closed form.

    Args:
        layer: should map ``inputs`` to ``targets`` in the least-squares sense.
        inputs: what the layer reads.
        targets: what it should then give.
    """

    layer: nn.Linear
    inputs: Float[Tensor, "s f"]
    targets: Float[Tensor, "s d"]


class AxisModule(nn.Module):
    """What the modules of all axes have in common."""

    fitted_apart: bool = False
    """Whether ``local_loss`` alone fits its parameters, because no gradient of the model's outputs reaches them."""

    @property
    def fits(self) -> bool:
        """Whether a warm start has anything to fit in it: new parameters, or old ones that are chosen and refitted."""
        return next(self.parameters(), None) is not None

    def local_loss(self, block: int, dense: DenseTrace) -> Tensor | None:
        """How badly new parameters imitate the dense model, given the dense model's own inputs.

        Args:
            block: the dense block in whose place the step stands.

        Returns:
            A relative squared error (0 is perfect, 1 as bad as a constant), or ``None`` without new parameters.
        """
        return None

    def measure(self, batch: FitBatch) -> Tensor | None:
        """Sums that ``choose_`` reads, to be added over all batches; ``None`` where nothing is chosen."""
        return None

    def choose_(self, sums: Tensor, batch: FitBatch) -> None:
        """Choose by what was measured which units of the dense block stay, before ``regressions`` reads them.

        Args:
            batch: any of those that were measured.
        """

    def regressions(self, batch: FitBatch) -> list[Regression]:
        """Linear layers to be solved for, the same ones for every batch."""
        return []


class Attention(AxisModule):
    """How a step obtains Z, the output of its attention branch."""

    def forward(
        self, bound: BoundBlock, tokens: Float[Tensor, "b n d"], stream: Stream
    ) -> tuple[Float[Tensor, "b n d"], Stream]:
        """Z for the active tokens, and the stream with what later steps may want of it."""
        raise NotImplementedError

    def add(
        self, bound: BoundBlock, tokens: Float[Tensor, "b n d"], stream: Stream
    ) -> tuple[Float[Tensor, "b n d"], Stream]:
        """The tokens after the attention branch with its residual add."""
        z, stream = self(bound, tokens, stream)
        return bound.add_attention(tokens, z), stream


class DenseAttention(Attention):
    """The block's own attention, as timm computes it."""

    def forward(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        attention_input = bound.attention_input(tokens)
        if not (stream.wants_class_attention or stream.wants_keys):
            z = bound.attend(attention_input, stream.context)
            return z, replace(stream, z=z)
        return attend_by_operands(bound, attention_input, stream)


def attend_by_operands(
    bound: BoundBlock, attention_input: Float[Tensor, "b n d"], stream: Stream
) -> tuple[Float[Tensor, "b n d"], Stream]:
    """Fused attention of operands projected apart, with the class row and the keys where they are wanted."""
    query, key, value = bound.queries_keys_values(attention_input, stream.context)
    bias = bound.attention_bias(stream.context, key.shape[2])
    row = bound.adapter.class_row(query, key, bias, bound.scale) if stream.wants_class_attention else None
    z = bound.merge_heads(attention_input, bound.mix(query, key, value, bias))
    return z, replace(stream, z=z, class_attention=row, keys=key if stream.wants_keys else None)


class NoAttentionBranch(Attention):
    """No attention branch."""

    def add(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        return tokens, stream


class TokenRule(AxisModule):
    """Who takes part in a step. The default: everybody, or whoever did before.

    Args:
        choice: what the plan says; it may be exchanged for its early form.
    """

    def __init__(self, choice: TokenChoice | None = None) -> None:
        super().__init__()
        self.choice: Any = choice or AllTokens()

    def enter(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        """Before the attention: choose the active tokens."""
        return tokens, stream

    def between(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        """Between attention and MLP: choose the active tokens, or note what a later choice reads."""
        return tokens, stream


class MlpBranch(AxisModule):
    """How a step computes its MLP branch. The default: the block's own, whatever its width."""

    def forward(self, bound: BoundBlock, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The tokens after the MLP branch with its residual add."""
        return bound.add_mlp(tokens)


class NoMlpBranch(MlpBranch):
    """No MLP branch."""

    def forward(self, bound: BoundBlock, tokens: Tensor) -> Tensor:
        return tokens


class Weights(AxisModule):
    """Whose weights a step runs with. The default: the block's own."""

    def bind(self, bound: BoundBlock) -> BoundBlock:
        """The block as this step sees it."""
        return bound

    def finish(self, tokens: Tensor) -> Tensor:
        """What follows after the block's two branches in this step alone."""
        return tokens
