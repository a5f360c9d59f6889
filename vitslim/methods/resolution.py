"""Resolution: the same model on smaller (or larger) images, hence fewer patches in every block.

What the position embeddings hold for a grid is resized with it, as timm does in ``set_input_size``: absolute positions
and tables of relative ones by interpolation, rotary angles by computing them anew. Matrices over the token axis that a
method brought are stored for a grid of their own and follow in every forward.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import Field, field_validator

from vitslim.errors import ConfigError
from vitslim.methods.base import Evidence, MethodConfig, register_method
from vitslim.methods.layers import parse_numbers
from vitslim.plans import ModelPlan


class ResolutionConfig(MethodConfig):
    """Options of another image size. No option reads an analysis."""

    keep: float = Field(default=0.5, gt=0.0, le=4.0, examples=["0.7"])
    """Share of the patches that is left; the size is the nearest that the patches divide, in the same shape."""
    size: tuple[int, int] | None = Field(default=None, examples=["160", "160,192"])
    """The same as (height, width) in pixels, or one number for both; takes the place of ``keep``."""

    @field_validator("size", mode="before")
    @classmethod
    def _read_size(cls, value: Any) -> Any:
        numbers = parse_numbers(value)
        return numbers * 2 if isinstance(numbers, tuple) and len(numbers) == 1 else numbers


@register_method(
    "resolution",
    ResolutionConfig,
    source="position embeddings resized as by timm",
    neutral={"keep": 1.0},
    example={"keep": 0.5},
    strengths=lambda plan: [{"keep": keep} for keep in (0.86, 0.74, 0.63, 0.51, 0.4, 0.3)],
)
def resolution(plan: ModelPlan, options: ResolutionConfig, evidence: Evidence | None) -> ModelPlan:
    """The plan at another image size."""
    size = options.size
    if size is None:
        scale = math.sqrt(options.keep)
        sides = zip(plan.grid, plan.model.patch, strict=True)
        height, width = (max(1, round(side * scale)) * patch for side, patch in sides)
        size = (height, width)
    for name, pixels, patch in zip(("height", "width"), size, plan.model.patch, strict=True):
        if pixels < patch or pixels % patch:
            near = sorted({max(1, pixels // patch) * patch, max(1, -(-pixels // patch)) * patch})
            raise ConfigError(
                f"resolution.size={size}: the {name} has to be a multiple of the patch, {patch} pixels; the nearest: "
                f"{' or '.join(map(str, near))}"
            )
    return plan.model_copy(update={"image_size": size})
