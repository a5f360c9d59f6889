"""Sliced attention as a step's choice: the block's own attention, within slices of the patches.

Source: Shen et al., "Sliced Recursive Transformer", ECCV 2022, arXiv 2111.05297. The authors cut the sequence in raster
order at a block's first application and after a random permutation at the second, drawn anew in every forward. Here a
seed fixes the permutation, so that outputs are deterministic.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.kernels import seeded_permutation, sliced_attention
from vitslim.models import TokenLayout
from vitslim.plans import AttentionChoice, Cost, Place, linear_cost
from vitslim.trunk import Attention, BoundBlock, Site, Stream


class Sliced(AttentionChoice):
    """The block's own attention within slices."""

    whole_grid: ClassVar[bool] = True
    fixed_size: ClassVar[str] = "the order of the patches and the size of a slice are fixed for one grid"

    kind: Literal["sliced"] = "sliced"
    groups: int = Field(ge=1)
    """Number of slices, a divisor of the number of patches."""
    seed: int | None = None
    """Of the permutation before cutting; ``None`` cuts in raster order."""

    def describe(self) -> str:
        return f"{self.groups} slices, {'raster order' if self.seed is None else 'permuted'}"

    def errors(self, at: Place) -> list[str]:
        patches = at.plan.patches
        if patches % self.groups == 0:
            return []
        fitting = ", ".join(str(count) for count in range(1, patches + 1) if patches % count == 0)
        return [f"{patches} patches are cut into equal slices only by {fitting}, not by {self.groups}"]

    def cost(self, at: Place) -> Cost:
        linear = linear_cost(at, "attention", at.tokens_in_attention, called=True)
        prefix, patches, width = at.plan.model.prefix, at.plan.patches, at.block.heads * at.block.head_width
        tokens = prefix + patches
        # Q Kᵀ and A V: prefix queries read all tokens, those of a slice the prefix and their slice.
        pairs = prefix * tokens + patches * (prefix + patches // self.groups)
        return linear + Cost(macs=width * (2 * pairs + (tokens if at.class_row else 0)))


class SlicedAttention(Attention):
    """The block's own attention within slices; prefix tokens see everything and are keys of every slice (ours).

    Args:
        groups, seed: as in ``Sliced``.
        layout: tokens at the model's image size.
    """

    order: Tensor
    inverse: Tensor

    def __init__(self, groups: int, layout: TokenLayout, seed: int | None) -> None:
        super().__init__()
        self.groups, self.seed = groups, seed
        if seed is not None:
            order = torch.tensor(token_order(layout, seed))
            # Not in the saved state: the seed says all, at every image size.
            self.register_buffer("order", order, persistent=False)
            self.register_buffer("inverse", order.argsort(), persistent=False)

    def forward(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        self._check(stream)
        attention_input = bound.attention_input(tokens)
        query, key, value = bound.queries_keys_values(attention_input, stream.context)
        bias = bound.attention_bias(stream.context, key.shape[2])
        row = bound.adapter.class_row(query, key, bias, bound.scale) if stream.wants_class_attention else None
        permutation = None if self.seed is None else self._permutation(stream.layout, self.seed, tokens.device)
        if permutation is not None:
            query, key, value = (part.index_select(2, permutation[0]) for part in (query, key, value))
            bias = None if bias is None else _permuted(bias, permutation[0])
        mixed = sliced_attention(bound.mix, query, key, value, self.groups, prefix=stream.layout.prefix, bias=bias)
        if permutation is not None:
            mixed = mixed.index_select(2, permutation[1])
        z = bound.merge_heads(attention_input, mixed)
        return z, replace(stream, z=z, class_attention=row)

    def _permutation(
        self, layout: TokenLayout, seed: int, device: torch.device
    ) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Order of all tokens, and its inverse."""
        if self.order.shape[0] == layout.tokens:
            return self.order, self.inverse
        # The image size was changed after the conversion; a model that is converted at its size does without this.
        order = torch.tensor(token_order(layout, seed), device=device)
        return order, order.argsort()

    def _check(self, stream: Stream) -> None:
        state, layout = stream.token_state, stream.layout
        if state is not None and state.active_indices() is not None:
            raise ConfigError("sliced attention cuts the whole grid, but the tokens were sorted; use slices=1")
        if layout.patches % self.groups:
            rows, columns = layout.grid
            raise ConfigError(
                f"{rows}×{columns} patches cannot be cut into {self.groups} equal slices; choose another image size"
            )


def realise_slices(choice: Sliced, site: Site) -> SlicedAttention:
    """The module of a choice."""
    with torch.device(site.device):
        return SlicedAttention(choice.groups, site.layout, choice.seed)


def token_order(layout: TokenLayout, seed: int) -> list[int]:
    """The prefix, then the patches in an order that the seed fixes."""
    patches = seeded_permutation(layout.patches, seed)
    return [*range(layout.prefix), *(layout.prefix + place for place in patches)]


def _permuted(bias: Tensor, order: Tensor) -> Tensor:
    columns = bias.index_select(-1, order)
    # A mask over keys alone has a single row, which serves all queries.
    return columns if bias.shape[-2] == 1 else columns.index_select(-2, order)
