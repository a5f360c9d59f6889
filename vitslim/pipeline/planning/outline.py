"""What planning is going to measure, before it does."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from vitslim.errors import ConfigError
from vitslim.pipeline.folder import RunFolder
from vitslim.pipeline.inputs import open_source
from vitslim.pipeline.planning.images import count_images
from vitslim.pipeline.planning.recovery import final_steps, rungs
from vitslim.planner import LADDER, Budget, PlannerConfig, RuntimeConfig, probes_left
from vitslim.planner.times import times_folder
from vitslim.plans import cost
from vitslim.recipe import Recipe
from vitslim.shapes import Result
from vitslim.trunk import plan_of

_CHANGES_PER_BLOCK = 16
"""About what there is to measure."""
_SECONDS_PER_MODEL, _SECONDS_COMPILED = 5.0, 30.0
"""To open a small model in a runtime and time it there, and where it is compiled by torch."""


class PlanOutline(Result):
    """What planning is going to measure.

    Attributes:
        lines: in words.
        seconds: that it takes, about.
        timed: models in the runtime, less the probes that were measured before.
        plans: whose damage is measured, on ``images``; ``fitted`` others are for their starts.
        trials: for each budget; ``steps`` of optimisers in all short trainings.
    """

    lines: list[str]
    seconds: float
    timed: int = 0
    plans: int = 0
    images: int = 0
    fitted: int = 0
    trials: int = 0
    steps: int = 0


def outline_plan(
    recipe: Recipe,
    *,
    budgets: Sequence[Budget],
    runtime: RuntimeConfig,
    config: PlannerConfig | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> PlanOutline:
    """What ``plan`` is going to measure, and about how long it takes; no weights are fetched and nothing is written.

    Args:
        out: where the plan is to go; checked where it is given.

    Raises:
        ConfigError: what ``plan`` refuses before it measures.
    """
    config = config or PlannerConfig()
    check_budgets(recipe, budgets)
    if out is not None:
        RunFolder(out).check(resolved(recipe, budgets, runtime, config), overwrite=overwrite)
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
    models = (probes_left(dense, runtime, times_folder()) + 2 * rounds * config.trials) if timed else 0
    share = f" ({steps / final_steps(recipe, model):.0%} of the distillation's)" if steps else ""
    lines = [
        f"damage: about {changes + plans} plans on {images - fitted} images, their starts fitted to {fitted} others",
        f"trials: {config.trials} plans for each budget, {steps} optimiser steps in all{share}",
    ]
    if timed:
        where = f"{runtime.backend}, {runtime.precision}, batch {runtime.batch}, {runtime.threads} CPU thread(s)"
        lines.insert(0, f"times: about {models} models in {where}, beside what was measured before")
    each = _SECONDS_COMPILED if runtime.backend.startswith("compiled") else _SECONDS_PER_MODEL
    return PlanOutline(
        lines=lines,
        seconds=forwards * cost(dense).macs / _macs_per_second() + models * each,
        timed=models,
        plans=changes + plans,
        images=images - fitted,
        fitted=fitted,
        trials=config.trials,
        steps=steps,
    )


def _macs_per_second() -> float:
    """Of a product of matrices on this CPU, the fastest of several, less what a model loses between them."""
    a, times = torch.randn(1024, 512), list[float]()
    b = torch.randn(512, 512)
    for _ in range(20):
        began = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - began)
    return 1024 * 512**2 / min(times) / 2


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


def resolved(recipe: Recipe, budgets: Sequence[Budget], runtime: RuntimeConfig, config: PlannerConfig) -> str:
    """All that a search depends on, by which its folder knows it."""
    settings = {"recipe": recipe, "runtime": runtime, "planner": config}
    document: dict[str, Any] = {name: one.model_dump(mode="json") for name, one in settings.items()}
    document["budgets"] = [one.model_dump(mode="json", exclude_none=True) for one in budgets]
    return yaml.safe_dump(document, sort_keys=False)
