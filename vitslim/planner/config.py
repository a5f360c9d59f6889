"""How much a planner tries."""

from __future__ import annotations

from pydantic import Field

from vitslim.shapes import Config


class PlannerConfig(Config):
    """How much is tried before the answer."""

    fitted: int = Field(default=128, ge=8)  # images that closed-form starts are solved on
    held_out: int = Field(default=512, ge=8)  # further images that damage is measured on; no trial trains on them
    measured: int = Field(default=40, ge=1)  # plans whose damage is measured as they are
    improved: int = Field(default=6, ge=0)  # of them, those that are improved step by step
    trials: int = Field(default=8, ge=1)  # plans that are trained for a short while
    recovery: float = Field(default=0.15, ge=0, le=10)  # steps of all short trainings, as a share of the final ones
    shortest: int = Field(default=10, ge=1)  # steps of a short training at least
    ray: str | None = None  # address of a Ray cluster that takes the short trainings; "auto": the one that runs here
