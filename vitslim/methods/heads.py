"""Fewer heads: each block keeps the attention heads that matter, and the output projection makes up for the rest.

A head matters by the mean square that it moves the attention's output around its mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from vitslim.methods.base import Evidence, MethodConfig, register_method
from vitslim.methods.widths import (
    read_layers,
    read_widths,
    same_width_errors,
    shares_weights,
    steps_to_narrow,
    widths_of,
)
from vitslim.models import inputs_of
from vitslim.plans import AttentionChoice, Cost, ModelPlan, Place, dense_attention_cost, places
from vitslim.trunk import Attention, BoundBlock, FitBatch, Regression, Site, Stream, attend_by_operands
from vitslim.trunk.unit_effects import topk, unit_effects, unit_sums

_PER_HEAD = ("rope", "shared_rel_pos_bias")
"""What a model may hand its blocks with one entry per head, on the third axis from the end."""


class NarrowAttention(AttentionChoice):
    """The block's attention with fewer heads."""

    kind: Literal["narrow"] = "narrow"
    left: int = Field(ge=1)
    """Heads that stay; of grouped queries whole groups."""

    def describe(self) -> str:
        return f"{self.left} heads"

    def heads(self, heads: int) -> int:
        return self.left

    def errors(self, at: Place) -> list[str]:
        block = at.dense_block
        if self.left > block.heads:
            return [f"{self.left} heads: block {at.step.block} has {block.heads}; choose fewer"]
        shared = block.heads // block.groups
        if self.left % shared:
            return [
                f"{self.left} heads: in block {at.step.block} {shared} heads share their keys and values; "
                f"choose a multiple of {shared}"
            ]
        return same_width_errors(at, "attention")

    def cost(self, at: Place) -> Cost:
        return dense_attention_cost(at, at.tokens_in_attention, called=True)


class FewerHeads(Attention):
    """The block's own narrow attention, and how its heads are chosen and its projection is fitted.

    Timm's modules take their output to be as wide as their input, so it runs by operands.

    Args:
        heads: how many are left, in groups of ``shared`` with the same keys and values.
        refits: whether the matrices are the block's own, so that they can be set.
        kept: which heads of the dense block, where the model hands its blocks something per head.
    """

    kept: Tensor | None

    def __init__(self, heads: int, shared: int, *, refits: bool, kept: Tensor | None) -> None:
        super().__init__()
        self.heads, self.shared, self.refits = heads, shared, refits
        self.register_buffer("kept", kept)

    @property
    def fits(self) -> bool:
        return self.refits

    def forward(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        narrow = replace(stream, context=self._narrowed(stream.context))
        z, after = attend_by_operands(bound, bound.attention_input(tokens), narrow)
        return z, replace(after, z=z, context=stream.context)

    def measure(self, batch: FitBatch) -> Tensor | None:
        if not self.refits:
            return None
        dense = batch.dense_bound.block
        mixed = inputs_of(batch.bound.adapter.attention_output(dense), batch.dense_z)
        return unit_sums(mixed, cast(Any, dense).attn.num_heads)

    def choose_(self, sums: Tensor, batch: FitBatch) -> None:
        adapter, dense = batch.bound.adapter, batch.dense_bound.block
        effects = unit_effects(sums, adapter.attention_output(dense).weight)
        kept = whole_groups(effects, self.heads, self.shared)
        adapter.take_heads_(batch.bound.block, dense, kept)
        if self.kept is not None:
            self.kept.copy_(kept)

    def regressions(self, batch: FitBatch) -> list[Regression]:
        if not self.refits:
            return []
        bound = batch.bound
        layer = bound.adapter.attention_output(bound.block)
        inputs, targets = inputs_of(layer, lambda: self(bound, batch.tokens, batch.stream)), batch.target_z()
        return [Regression(layer, inputs.flatten(0, 1), targets.flatten(0, 1))]

    def _narrowed(self, context: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.kept is None:
            return context
        per_head = {
            name: value.index_select(value.ndim - 3, self.kept)
            for name, value in context.items()
            if name in _PER_HEAD and value is not None and value.ndim >= 3 and value.shape[-3] != 1
        }
        return {**context, **per_head}


def whole_groups(effects: Tensor, heads: int, shared: int) -> Tensor:
    """The heads of the groups with the largest summed effects, in order."""
    groups = topk(effects.unflatten(0, (-1, shared)).sum(1), heads // shared)
    return (groups[:, None] * shared + torch.arange(shared, device=groups.device)).flatten()


def _fewer_heads(choice: NarrowAttention, site: Site) -> FewerHeads:
    attn: Any = site.block.attn
    shared = site.place.dense_block.heads // site.place.dense_block.groups
    kept = torch.arange(choice.left, device=site.device)
    if attn.num_heads != choice.left:
        if site.is_drawn:
            kept = whole_groups(site.adapter.head_norms(site.block), choice.left, shared)
        site.adapter.narrow_heads_(site.block, kept)
    model = site.place.plan.model
    per_head = model.positions_per_block or model.shared_relative_heads
    return FewerHeads(choice.left, shared, refits=not shares_weights(site.place), kept=kept if per_head else None)


class HeadsConfig(MethodConfig):
    """Options of heads."""

    layers: Annotated[tuple[int, ...] | None, BeforeValidator(read_layers)] = Field(default=None, examples=["3-8"])
    """Blocks whose attention changes, counted from 0; default all."""
    keep: float = Field(default=0.5, gt=0, le=1, examples=[0.75])
    """Share of the heads that stay, over all these blocks; at least one in each."""
    widths: Annotated[tuple[int, ...] | Literal["even", "auto"] | None, BeforeValidator(read_widths)] = Field(
        default=None, examples=["even"]
    )
    """Heads of each of the blocks; ``even``: the share in each; ``auto``: more where an analysis says that they
    matter. Not given: by the analysis where there is one, else even."""


@register_method(
    "heads",
    HeadsConfig,
    source="ours: heads by their effect on the attention's output, least squares for the projection",
    modules={NarrowAttention: _fewer_heads},
    advised="widths",
    chosen=lambda before, after: [at.block.heads for at in places(after)],
    usual="even",
    neutral={"keep": 1.0},
    example={"keep": 0.5},
    strengths=lambda plan: [{"keep": keep} for keep in (0.84, 0.67, 0.5)],
)
def heads(plan: ModelPlan, options: HeadsConfig, evidence: Evidence | None) -> ModelPlan:
    """The plan with fewer heads."""
    chosen = steps_to_narrow(plan, "heads", "attention", options.layers)
    shapes = [plan.model.blocks[plan.steps[index].block] for index in chosen]
    shared = [shape.heads // shape.groups for shape in shapes]
    explicit = isinstance(options.widths, tuple)
    units = widths_of(
        "heads", options, [plan.steps[index].block for index in chosen], [shape.groups for shape in shapes], evidence
    )
    counts = units if explicit else [count * each for count, each in zip(units, shared, strict=True)]
    changed = {
        index: plan.steps[index].but(attention=NarrowAttention(left=count))
        for index, count, shape in zip(chosen, counts, shapes, strict=True)
        if count != shape.heads
    }
    return plan.with_steps(changed)
