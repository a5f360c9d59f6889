"""Mean: attention in some blocks replaced by one linear map of the mean token; a package of its own could hold this."""

from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from vitslim.methods import Evidence, MethodConfig, register_method
from vitslim.plans import AttentionChoice, Cost, ModelPlan, Place
from vitslim.trunk import Attention, BoundBlock, Site, Stream


class MeanConfig(MethodConfig):
    """Options of the toy."""

    layers: tuple[int, ...] = Field(default=(1,), examples=["[1]"])
    """Blocks whose attention is replaced."""


class Mean(AttentionChoice):
    """Z is the same for all tokens: a map of their mean."""

    attends: ClassVar[bool] = False
    kind: Literal["mean"] = "mean"

    def describe(self) -> str:
        return "mean token"

    def cost(self, at: Place) -> Cost:
        width = at.plan.model.width
        return Cost(macs=width * width, parameters=width * width, activations=width)


class MeanAttention(Attention):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width, bias=False)

    def forward(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        z = self.map(tokens.mean(dim=1, keepdim=True)).expand_as(tokens)
        return z, replace(stream, z=z)


def make(choice: Mean, site: Site) -> MeanAttention:
    with torch.device(site.device):
        return MeanAttention(site.width).to(site.dtype)


@register_method(
    "toy_mean", MeanConfig, source="nowhere", modules={Mean: make}, neutral={"layers": ()}, example={"layers": (1,)}
)
def toy_mean(plan: ModelPlan, options: MeanConfig, evidence: Evidence | None) -> ModelPlan:
    """The plan with the mean in place of attention."""
    return plan.with_steps({layer: plan.steps[layer].but(attention=Mean()) for layer in options.layers})
