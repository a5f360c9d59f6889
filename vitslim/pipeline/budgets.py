"""A plan for a budget, as a recipe and as Python ask for it; ``vitslim.pipeline.planning`` finds it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import InstanceOf
from torch import nn

from vitslim.arguments import checked
from vitslim.checkpoint import save
from vitslim.data import DataConfig
from vitslim.errors import ConfigError
from vitslim.opening import ModelLike
from vitslim.pipeline.outline import Announce, Outline, keep_quiet
from vitslim.pipeline.running import AFTER_TRAINING, RunResult
from vitslim.pipeline.running import run as run_with_plan
from vitslim.pipeline.runtimes import check_runtime
from vitslim.planner import PlanReport
from vitslim.planner.config import PlannerConfig
from vitslim.progress import ProgressCallback, silent
from vitslim.recipe import PlannerSection, Recipe, read_recipe
from vitslim.runtime import Precision
from vitslim.shapes import AnyPath, AtLeastOne
from vitslim.train import DistillConfig

if TYPE_CHECKING:
    from vitslim.pipeline.choices import Choice
    from vitslim.pipeline.planning import PlanOutline

Limits = float | Sequence[float] | None
"""One budget, or several of a kind."""
EPOCHS = 3.0
"""Passes of the distillation that a student is going to have, where nobody says."""


@checked
def plan(
    model: ModelLike,
    data: AnyPath | InstanceOf[DataConfig],
    *,
    speedup: Limits = None,
    latency_ms: Limits = None,
    macs: Limits = None,
    params: Limits = None,
    file_mib: Limits = None,
    max_drop: Limits = None,
    target: str = "ort",
    batch: AtLeastOne = 1,
    threads: AtLeastOne = 1,
    precision: Precision = "fp32",
    device: str = "cpu",
    batch_size: AtLeastOne = 64,
    config: PlannerConfig | None = None,
    distill: DistillConfig | None = None,
    out: AnyPath | None = None,
    overwrite: bool = False,
    progress: ProgressCallback = silent,
) -> PlanReport:
    """Find the plan of a dense model that recovers best within a budget, for ``vitslim.convert(model, plan=...)``.

    Args:
        model: whatever ``open_model`` takes.
        data: images of the task; labels are not needed.
        speedup: over the dense model in the target. This and the five that follow are budgets: one at least; several
            numbers, and several budgets, each get a plan.
        latency_ms: of one call in the target, milliseconds.
        macs: multiply-accumulates of one image, in billions.
        params: parameters, in millions.
        file_mib: weights in ``precision``, MiB.
        max_drop: points of accuracy that the fastest plan may lose in its short training.
        target: the backend that the model is to be fast in, as ``vitslim.list_targets`` names them.
        batch: images per call in the target.
        threads: of the CPU in the target.
        precision: of weights and arithmetic in the target.
        device: on which images are run and plans are trained, and which the target is timed on.
        batch_size: images per batch of training, where ``data`` is a path.
        config: how much is tried.
        distill: the training that the student is going to have; three passes over the images by default. A share of it
            is spent on short trainings.
        out: takes the plans, the report and the short trainings, and lets a search that was interrupted go on where the
            model is given by name or folder; a temporary folder by default.
        overwrite: use a folder that holds something else.

    Raises:
        ConfigError: no budget, one that nothing reaches, or arguments that do not fit.
        MissingDependencyError: the target or the device is not here.
    """
    limits = {"speedup": speedup, "latency_ms": latency_ms, "macs": macs, "params": params}
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vitslim-plan-")))
        if isinstance(model, nn.Module):
            save(model, place / "model")
            model = place / "model"
        images = {"source": str(data), "batch_size": batch_size}
        runtime = {"backend": target, "batch": batch, "threads": threads, "precision": precision}
        recipe = read_recipe(
            {
                "model": {"name": str(model)},
                "data": data.model_dump(mode="json") if isinstance(data, DataConfig) else images,
                "planner": {
                    "budgets": named_budgets({**limits, "file_mib": file_mib, "max_drop": max_drop}),
                    "runtime": {**runtime, "device": device.partition(":")[0]},
                    "config": (config or PlannerConfig()).model_dump(),
                },
                "distill": (distill or DistillConfig(epochs=EPOCHS)).model_dump(),
                "device": device,
            }
        )
        return find_plan(recipe, place / "plan" if out is None else Path(out), overwrite=overwrite, progress=progress)


def named_budgets(limits: dict[str, Limits]) -> list[dict[str, float]]:
    """Every budget that was given, by its name in ``Budget``.

    Raises:
        ConfigError: there is none.
    """
    several = {name: [limit] if isinstance(limit, float | int) else limit or () for name, limit in limits.items()}
    found: list[dict[str, float]] = [{name: limit} for name, given in several.items() for limit in given]
    if not found:
        raise ConfigError(f"name a budget; there are {', '.join(limits)}")
    return found


def find_plan(recipe: Recipe, out: Path, *, overwrite: bool = False, progress: ProgressCallback = silent) -> PlanReport:
    """The plan that a recipe's ``planner`` section asks for; see ``vitslim.pipeline.planning.plan``."""
    from vitslim.pipeline import planning

    section = _section(recipe)
    check_runtime(section.runtime)
    asked: dict[str, Any] = {"budgets": section.budgets, "runtime": section.runtime, "config": section.config}
    return planning.plan(_alone(recipe), out, **asked, overwrite=overwrite, progress=progress)


def outline_plan(recipe: Recipe, out: Path | None = None, *, overwrite: bool = False) -> PlanOutline:
    """What ``find_plan`` is going to measure and about how long it takes; it refuses what that would refuse.

    Args:
        out: where the plan is to go; checked where it is given.
    """
    from vitslim.pipeline import planning

    section = _section(recipe)
    check_runtime(section.runtime)
    asked: dict[str, Any] = {"budgets": section.budgets, "runtime": section.runtime, "config": section.config}
    return planning.outline_plan(_alone(recipe), **asked, out=out, overwrite=overwrite)


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: ProgressCallback = silent,
    announce: Announce = keep_quiet,
) -> RunResult:
    """``vitslim.pipeline.running.run``; the plan of a recipe with a ``planner`` is found first, in the same folder."""
    if recipe.planner is None:
        return run_with_plan(recipe, out, overwrite=overwrite, progress=progress, announce=announce)
    ahead = outline_plan(recipe)

    def tell(news: Outline | list[Choice]) -> None:
        announce(with_planning(news, ahead) if isinstance(news, Outline) else news)

    return run_with_plan(recipe, out, overwrite=overwrite, progress=progress, announce=tell, find_plan=_find_within)


def with_planning(outline: Outline, ahead: PlanOutline) -> Outline:
    """The outline of a run that begins with planning."""
    return outline.model_copy(update={"planning": ahead.lines, "planning_seconds": ahead.seconds})


def _find_within(recipe: Recipe, folder: Path, progress: ProgressCallback) -> object:
    # The folder is the run's own: what another recipe's search left there is of no use to anybody.
    return find_plan(recipe, folder, overwrite=True, progress=progress)


def _section(recipe: Recipe) -> PlannerSection:
    if recipe.planner is None:
        raise ConfigError("the recipe has no planner section, which names the budget")
    return recipe.planner


def _alone(recipe: Recipe) -> Recipe:
    """What of a recipe planning depends on: changes elsewhere let a search go on that was interrupted."""
    others = ("planner", *AFTER_TRAINING)
    return recipe.model_copy(update={name: Recipe.model_fields[name].get_default() for name in others})
