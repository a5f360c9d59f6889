"""What the planner found: every trial with its price, damage and recovery, and the one that it chose."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from vitslim.planner.budget import Budget
from vitslim.planner.damage import Damage
from vitslim.planner.times import RuntimeConfig
from vitslim.shapes import Result


class Rung(Result):
    """A short training of one trial.

    Attributes:
        steps: of distillation.
        damage: on the images that no closed-form start saw, after it.
    """

    steps: int
    damage: Damage


class Trial(Result):
    """One plan that was looked at in earnest.

    Attributes:
        name: for tables: its methods with their options.
        entries: the methods that lead to it, as recipes have them.
        plan: as plan.json has it.
        macs, parameters: of the whole model, for one image.
        predicted: its price as a share of the dense model's, before it was measured.
        measured: its time as a share of the dense model's in the same rounds; ``None`` where the budget is not a time.
        expected_kl: what its methods do alone, summed, nats.
        damage: after the closed-form start, without training.
        rungs: short trainings that it went through, in order.
    """

    name: str
    entries: list[dict[str, Any]]
    plan: dict[str, Any]
    macs: int
    parameters: int
    predicted: float
    measured: float | None
    expected_kl: float
    damage: Damage
    rungs: list[Rung] = Field(default_factory=list[Rung])


class PlanReport(Result):
    """What ``vitslim plan`` found.

    Attributes:
        limit: the most that a plan may cost, as a share of the dense model.
        compositions: how many met it on paper.
        dense_ms: latency of the dense model in the runtime; ``None`` where the budget is not a time.
        prediction_error: median relative error of the predicted times of the trials.
        trials: all, the least damaged first.
        chosen: index of the one that recovered best.
        recovery_steps: optimiser steps of all short trainings together.
    """

    model: str
    data: str
    budget: Budget
    runtime: RuntimeConfig | None
    limit: float
    compositions: int
    dense_ms: float | None
    prediction_error: float | None
    trials: list[Trial]
    chosen: int
    recovery_steps: int
    environment: dict[str, Any]

    @property
    def plan(self) -> dict[str, Any]:
        """The chosen plan, as plan.json has it."""
        return self.trials[self.chosen].plan
