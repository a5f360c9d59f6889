"""Narrow MLPs: each block keeps the neurons that matter, and the rest is folded into the output map.

A neuron matters by the variance of its activation times the squared norm of its output weights. The mean of those that
go, and what can be said of them by those that stay, goes into the output map's weights and bias (least squares).
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.methods.base import Evidence, MethodConfig, register_method
from vitslim.methods.stand_in import LinearStandIn, stand_in_at, stand_in_cost
from vitslim.methods.widths import (
    read_layers,
    read_widths,
    same_width_errors,
    shares_weights,
    steps_to_narrow,
    widths_of,
)
from vitslim.plans import Cost, MlpChoice, ModelPlan, Place, linear_cost, places
from vitslim.trunk import BoundBlock, FitBatch, MlpBranch, Regression, Site
from vitslim.trunk.unit_effects import topk, unit_effects, unit_sums


class NarrowMlp(MlpChoice):
    """The block's MLP with fewer neurons."""

    kind: Literal["narrow"] = "narrow"
    neurons: int = Field(ge=1)

    def describe(self) -> str:
        return f"{self.neurons} neurons"

    def hidden(self, hidden: int) -> int:
        return self.neurons

    def errors(self, at: Place) -> list[str]:
        most = at.dense_block.hidden
        if self.neurons > most:
            return [f"{self.neurons} neurons: the MLP of block {at.step.block} has {most}; choose fewer"]
        return same_width_errors(at, "mlp")

    def cost(self, at: Place) -> Cost:
        return linear_cost(at, "mlp", at.tokens_in_mlp, called=True)


class LinearMlp(MlpChoice):
    """A linear map of the tokens in place of the MLP branch."""

    uses_block: ClassVar[bool] = False
    kind: Literal["linear"] = "linear"

    def describe(self) -> str:
        return "linear map"

    def cost(self, at: Place) -> Cost:
        return stand_in_cost(at, at.tokens_in_mlp)


class NarrowBranch(MlpBranch):
    """The block's own narrow MLP, and how its neurons are chosen and its output map is fitted.

    Args:
        neurons: how many are left.
        refits: whether the matrices are the block's own, so that they can be set.
    """

    def __init__(self, neurons: int, *, refits: bool) -> None:
        super().__init__()
        self.neurons, self.refits = neurons, refits

    @property
    def fits(self) -> bool:
        return self.refits

    def measure(self, batch: FitBatch) -> Tensor | None:
        if not self.refits:
            return None
        dense = batch.dense_bound
        hidden = dense.adapter.hidden_activations(dense.block, batch.tokens)
        return unit_sums(hidden, hidden.shape[-1])

    def choose_(self, sums: Tensor, batch: FitBatch) -> None:
        adapter, dense = batch.bound.adapter, batch.dense_bound.block
        effects = unit_effects(sums, adapter.mlp_output(dense).weight)
        adapter.take_neurons_(batch.bound.block, dense, topk(effects, self.neurons))

    def regressions(self, batch: FitBatch) -> list[Regression]:
        if not self.refits:
            return []
        adapter, block = batch.bound.adapter, batch.bound.block
        inputs, targets = adapter.hidden_activations(block, batch.tokens), batch.target_mlp_output()
        return [Regression(adapter.mlp_output(block), inputs.flatten(0, 1), targets.flatten(0, 1))]


class LinearBranch(MlpBranch):
    """x ← x + W x + b in place of the MLP branch."""

    def __init__(self, maps: LinearStandIn) -> None:
        super().__init__()
        self.maps = maps

    def forward(self, bound: BoundBlock, tokens: Tensor) -> Tensor:
        return tokens + self.maps(tokens)

    def regressions(self, batch: FitBatch) -> list[Regression]:
        return self.maps.regressions(batch.tokens, batch.dense_mlp_outputs() - batch.tokens)


def _narrow_branch(choice: NarrowMlp, site: Site) -> NarrowBranch:
    hidden = site.adapter.mlp_output(site.block).in_features
    if hidden != choice.neurons:
        if site.is_drawn:
            kept = topk(site.adapter.neuron_norms(site.block), choice.neurons)
        else:
            kept = torch.arange(choice.neurons, device=site.device)
        site.adapter.narrow_mlp_(site.block, kept)
    return NarrowBranch(choice.neurons, refits=not shares_weights(site.place))


class MlpConfig(MethodConfig):
    """Options of mlp."""

    layers: Annotated[tuple[int, ...] | None, BeforeValidator(read_layers)] = Field(default=None, examples=["3-8"])
    """Blocks whose MLPs change, counted from 0; default all."""
    keep: float = Field(default=0.5, gt=0, le=1, examples=[0.75])
    """Share of the neurons that stay, over all these blocks."""
    widths: Annotated[tuple[int, ...] | Literal["even", "auto"] | None, BeforeValidator(read_widths)] = Field(
        default=None, examples=["even"]
    )
    """Neurons of each of the blocks; ``even``: the share in each; ``auto``: more where an analysis says that they
    matter. Not given: by the analysis where there is one, else even."""
    align: int = Field(default=8, ge=1, le=1024, examples=[64])
    """Shares are rounded up to a multiple of so many neurons, for the sake of fast kernels."""
    form: Literal["narrow", "linear"] = "narrow"
    """``linear``: a linear map of the tokens in place of each whole MLP; the warm start fits it."""


@register_method(
    "mlp",
    MlpConfig,
    source="ours: neurons by variance, their mean folded into the bias, least squares for the rest",
    modules={NarrowMlp: _narrow_branch, LinearMlp: lambda choice, site: LinearBranch(stand_in_at(site))},
    advised="widths",
    chosen=lambda before, after: [at.block.hidden for at in places(after)],
    usual="even",
    neutral={"keep": 1.0},
    example={"keep": 0.5},
    forms={"linear": {"layers": (1,), "form": "linear"}},
    strengths=lambda plan: [
        {"keep": keep, "widths": widths} for keep in (0.875, 0.75, 0.625, 0.5, 0.375, 0.25) for widths in ("even", None)
    ],
)
def mlp(plan: ModelPlan, options: MlpConfig, evidence: Evidence | None) -> ModelPlan:
    """The plan with narrower MLPs."""
    chosen = steps_to_narrow(plan, "mlp", "mlp", options.layers)
    if options.form == "linear":
        if isinstance(options.widths, tuple):
            raise ConfigError(f"mlp.widths={options.widths}: a linear map has no neurons; leave widths out")
        return plan.with_steps({index: plan.steps[index].but(mlp=LinearMlp()) for index in chosen})
    blocks = [plan.steps[index].block for index in chosen]
    sizes = [plan.model.blocks[block].hidden for block in blocks]
    widths = widths_of("mlp", options, blocks, sizes, evidence, options.align)
    changed = {
        index: plan.steps[index].but(mlp=NarrowMlp(neurons=width))
        for index, width, size in zip(chosen, widths, sizes, strict=True)
        if width != size
    }
    return plan.with_steps(changed)
