"""Width: fewer channels in the stream between the blocks, those in which tokens differ least being left out."""

from __future__ import annotations

from pydantic import Field

from vitslim.errors import ConfigError
from vitslim.methods.base import Evidence, MethodConfig, register_method
from vitslim.plans import ModelPlan


class WidthConfig(MethodConfig):
    """Options of a narrower stream. No option reads an analysis."""

    keep: float = Field(default=0.75, gt=0.0, le=1.0, examples=["0.5"])
    """Share of the channels that stay."""
    align: int = Field(default=8, ge=1, examples=["32"])
    """The width is a multiple of so many."""


@register_method(
    "width",
    WidthConfig,
    source="ours: principal components of the stream, as SliceGPT has them for language models",
    neutral={"keep": 1.0},
    example={"keep": 0.75},
    strengths=lambda plan: [] if plan.width is not None else [{"keep": keep} for keep in (0.875, 0.75, 0.625, 0.5)],
)
def width(plan: ModelPlan, options: WidthConfig, evidence: Evidence | None) -> ModelPlan:
    """The plan on a narrower stream."""
    if plan.width is not None:
        raise ConfigError(f"width: the stream has been narrowed to {plan.width} channels; narrow it once")
    channels = max(1, round(options.keep * plan.model.width / options.align)) * options.align
    if channels >= plan.model.width:
        return plan
    return plan.model_copy(update={"width": channels})
