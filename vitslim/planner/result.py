"""What the planner found: every trial with its price, damage and recovery, and those that it chose."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from vitslim.planner.budget import Budget
from vitslim.planner.config import PlannerConfig
from vitslim.planner.damage import Damage
from vitslim.planner.times import RuntimeConfig
from vitslim.shapes import Result

_KNOWN_BY_HEART = 0.995
"""Accuracy from which on images say little about damage."""


class Rung(Result):
    """A short training of one trial.

    Attributes:
        steps: of distillation, from the closed-form start.
        damage: on the images that no closed-form start saw, after it.
    """

    steps: int
    damage: Damage


class StepReason(Result):
    """One dense block in a plan: what became of it, and why.

    Attributes:
        block: number of the dense block, from 0.
        choice: in words; ``dense`` where it stays as it is, ``dropped`` where it goes.
        cost: of all steps of this block, as a share of the dense model's, in the measure of the budget.
        alone: divergence that this block's change causes alone, nats; ``None`` where it was not measured.
        cheapest_other: the least divergence of any other change of this block that was measured, with its name.
    """

    block: int
    choice: str
    cost: float
    alone: float | None = None
    cheapest_other: tuple[str, float] | None = None


class Trial(Result):
    """One plan that was looked at in earnest.

    Attributes:
        name: for tables: its methods with their options, and what was improved in it.
        kind: how it was found: ``method`` (one method), ``methods`` (several), ``steps`` (a choice for each step), or
            ``improved`` (one of these, changed step by step).
        entries: the methods that lead to it, as recipes have them; empty for a choice for each step. ``rates`` in
            place of a method's options is the part of the saving that its rates for each step bring.
        plan: as plan.json has it.
        macs, parameters: of the whole model, for one image.
        predicted: its price as a share of the dense model's, before it was measured.
        measured: its time as a share of the dense model's in the same rounds; ``None`` where the budget is not a time.
        expected_kl: what its methods or steps do alone, summed, nats.
        damage: after the closed-form start, without training.
        figures: what else may foretell how it recovers, by name; each rises with the damage.
        blocks: what became of each dense block.
        rungs: short trainings that it went through, in order.
    """

    name: str
    kind: str
    entries: list[dict[str, Any]]
    plan: dict[str, Any]
    macs: int
    parameters: int
    predicted: float
    measured: float | None
    expected_kl: float
    damage: Damage
    figures: dict[str, float] = Field(default_factory=dict[str, float])
    blocks: list[StepReason] = Field(default_factory=list[StepReason])
    rungs: list[Rung] = Field(default_factory=list[Rung])

    @property
    def share(self) -> float:
        """Its price as a share of the dense model's, measured where it was."""
        return self.predicted if self.measured is None else self.measured

    @property
    def last(self) -> Damage:
        """After its last short training, or its start."""
        return self.rungs[-1].damage if self.rungs else self.damage


class Outlook(Result):
    """What another budget would buy, before any training.

    Attributes:
        limit: share of the dense model's price.
        expected_kl: of the best choice for each step that fits, summed over the steps, nats.
    """

    limit: float
    expected_kl: float


class Answer(Result):
    """The plan for one budget.

    Attributes:
        limit: the most that a plan may cost, as a share of the dense model.
        found: how many plans met it on paper.
        trials: indices of those that were trained for it.
        chosen: index of the one that recovered best.
    """

    budget: Budget
    limit: float
    found: int
    trials: list[int]
    chosen: int


class PlanReport(Result):
    """What ``vitslim plan`` found.

    Attributes:
        dense_ms: latency of the dense model in the runtime; ``None`` where no budget is a time.
        images: that damage was measured on; no trial was trained on them.
        dense: the dense model on them: its loss and accuracy where there are labels.
        prediction_error: median relative error of the predicted times of the trials.
        trials: of all answers, for each the least damaged first.
        answers: one for each budget, in the order given; of ``max_drop`` the one that keeps it.
        front: an answer for every speedup that ``max_drop`` tried; empty without.
        outlook: what other budgets would buy, from the cheapest.
        recovery_steps: optimiser steps of all short trainings together.
        seconds: what each stage took.
    """

    model: str
    data: str
    runtime: RuntimeConfig | None
    config: PlannerConfig
    dense_ms: float | None
    images: int
    dense: Damage
    prediction_error: float | None
    trials: list[Trial]
    answers: list[Answer]
    front: list[Answer] = Field(default_factory=list[Answer])
    outlook: list[Outlook] = Field(default_factory=list[Outlook])
    recovery_steps: int
    seconds: dict[str, float] = Field(default_factory=dict[str, float])
    environment: dict[str, Any]

    @property
    def cautions(self) -> list[str]:
        """What a reader has to mind."""
        if self.dense.top1 is None or self.dense.top1 < _KNOWN_BY_HEART:
            return []
        return [
            f"The dense model is right on {self.dense.top1:.1%} of the images that damage was measured on, as if it "
            "had learned them by heart: damage that shows on new images may not show on them. Images that it was not "
            "trained on tell plans apart better."
        ]

    @property
    def chosen(self) -> Trial:
        """That of the first budget."""
        return self.trials[self.answers[0].chosen]

    @property
    def plan(self) -> dict[str, Any]:
        """The chosen plan of the first budget, as plan.json has it."""
        return self.chosen.plan
