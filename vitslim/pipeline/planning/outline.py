"""What planning is going to measure, before it does."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from vitslim.errors import ConfigError
from vitslim.pipeline.inputs import open_source
from vitslim.pipeline.planning.images import count_images
from vitslim.pipeline.planning.recovery import rungs
from vitslim.planner import LADDER, Budget, PlannerConfig, RuntimeConfig
from vitslim.plans import cost
from vitslim.recipe import Recipe
from vitslim.shapes import Result
from vitslim.trunk import plan_of

_CHANGES_PER_BLOCK, _PROBES, _SECONDS_PER_MODEL = 16, 25, 5.0
"""About what there is to measure."""


class PlanOutline(Result):
    """What planning is going to measure, in words, and about how many seconds that takes."""

    lines: list[str]
    seconds: float


def outline_plan(
    recipe: Recipe, *, budgets: Sequence[Budget], runtime: RuntimeConfig, config: PlannerConfig | None = None
) -> PlanOutline:
    """What ``plan`` is going to measure, and about how long it takes; no weights are fetched and nothing is written.

    Raises:
        ConfigError: what ``plan`` refuses before it measures.
    """
    config = config or PlannerConfig()
    check_budgets(recipe, budgets)
    assert recipe.data is not None
    model = open_source(recipe, shape_only=True)
    dense = plan_of(model)
    for budget in budgets:
        if budget.measure != "time":
            budget.limit(dense, None, runtime.precision)
    images = count_images(recipe, model, config)
    fitted, rounds = images * config.fitted // (config.fitted + config.held_out), len(budgets)
    if budgets[0].max_drop is not None:
        rounds = len(LADDER)
    timed = any(one.measure == "time" for one in budgets)
    changes = dense.depth * _CHANGES_PER_BLOCK
    plans = rounds * (config.measured + 12 * config.improved + 10) + 30
    steps = rounds * sum(count * each for count, each in rungs(recipe, model, config, config.trials))
    # A start runs its images some four times, a single change half of the model on average.
    forwards = (changes / 2 + plans) * (images - fitted + 4 * fitted) + 4 * steps * recipe.data.batch_size
    models = (_PROBES + 2 * rounds * config.trials) * timed
    lines = [
        f"damage: about {changes + plans} plans on {images - fitted} images, their starts fitted to {fitted} others",
        f"trials: {config.trials} plans for each budget, {steps} optimiser steps in all",
    ]
    if timed:
        where = f"{runtime.backend}, {runtime.precision}, batch {runtime.batch}, {runtime.threads} CPU thread(s)"
        lines.insert(0, f"times: about {models} models in {where}; those that were measured before are taken over")
    seconds = forwards * cost(dense).macs / _macs_per_second() + models * _SECONDS_PER_MODEL
    return PlanOutline(lines=lines, seconds=seconds)


def _macs_per_second() -> float:
    """Of a product of matrices on this CPU, less what a model loses between them."""
    a = torch.randn(512, 512)
    torch.mm(a, a)
    began = time.perf_counter()
    for _ in range(8):
        torch.mm(a, a)
    return 8 * 512**3 / (time.perf_counter() - began) / 2


def check_budgets(recipe: Recipe, budgets: Sequence[Budget]) -> None:
    """Refuse what can be refused without a model."""
    if not budgets:
        raise ConfigError("planning needs a budget, such as speedup=1.5")
    if recipe.data is None:
        raise ConfigError("planning needs images of the task, without labels if need be; add --data")
    described = [one.describe() for one in budgets]
    if twice := sorted({one for one in described if described.count(one) > 1}):
        raise ConfigError(f"{', '.join(twice)} is given twice")
    if any(one.max_drop is not None for one in budgets) and len(budgets) > 1:
        raise ConfigError("--max-drop tries several speedups by itself; give it alone")
