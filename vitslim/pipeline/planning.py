"""From a budget to a plan: price, search, short trainings; every part is resumed where it was interrupted."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from torch import nn

from vitslim.analysis import AnalysisReport, analyze_once
from vitslim.bench import environment
from vitslim.checkpoint import load
from vitslim.errors import ConfigError
from vitslim.files import write_json
from vitslim.pipeline.devices import on_device
from vitslim.pipeline.folder import RunFolder
from vitslim.pipeline.images import data_config, labels_for, open_loader
from vitslim.pipeline.inputs import analysis_images, open_source
from vitslim.pipeline.side_by_side import run_side_by_side
from vitslim.planner import (
    Budget,
    Candidate,
    Composition,
    DamageMeter,
    PlanReport,
    Rung,
    RuntimeConfig,
    StepTimes,
    Trial,
    best_of_each_kind,
    compositions,
    measure_plans,
    probes_once,
    rank,
)
from vitslim.planner.config import PlannerConfig
from vitslim.planner.result import Answer
from vitslim.plans import cost, plan_json
from vitslim.progress import ProgressCallback, silent
from vitslim.recipe import AnalyzeSection, Recipe
from vitslim.shapes import Result
from vitslim.train import DistillConfig, WarmStartConfig
from vitslim.trunk import plan_of

PLANNER_FILE, PLAN_FILE = "planner.json", "plan.json"
_MARGIN = 0.97
"""Of the limit that predictions aim at, for they err by some per cent."""
_TOLERANCE = 1.02
"""Of the limit that a measured time may take: what rounds on a shared machine differ by."""


class PlanOutline(Result):
    """What planning is going to measure, in words, and about how many seconds that takes."""

    lines: list[str]
    seconds: float


def plan(
    recipe: Recipe,
    out: str | Path,
    *,
    budgets: Sequence[Budget],
    runtime: RuntimeConfig,
    config: PlannerConfig | None = None,
    overwrite: bool = False,
    progress: ProgressCallback = silent,
) -> PlanReport:
    """Find the plan of a model that recovers best within a budget; see ``vitslim.planner``.

    Args:
        recipe: model, images, and the distillation that the student is going to have; its methods are not used.
        out: takes plan.json, planner.json and the short trainings.

    Raises:
        ConfigError: no images, a converted model, or a budget that nothing reaches.
        CheckFailedError: the runtime does not run the model.
    """
    config = config or PlannerConfig()
    if recipe.data is None:
        raise ConfigError("planning needs images of the task, without labels if need be; add --data")
    folder = RunFolder(out)
    settings = {"recipe": recipe, "runtime": runtime, "planner": config, **{b.describe(): b for b in budgets}}
    text = yaml.safe_dump({name: one.model_dump(mode="json") for name, one in settings.items()}, sort_keys=False)
    folder.check(text, overwrite=overwrite)
    dense = on_device(open_source(recipe), recipe.device)
    folder.begin(text, overwrite=overwrite)
    with folder:
        if folder.enter("plan", text, PLANNER_FILE, PLAN_FILE):
            found = _Planning(recipe, folder, dense.eval(), budgets[0], runtime, config, progress).run()
            for budget in budgets[1:]:
                other = _Planning(recipe, folder, dense.eval(), budget, runtime, config, progress).run()
                first, (answer,) = len(found.trials), other.answers
                moved = {"trials": [first + one for one in answer.trials], "chosen": first + answer.chosen}
                answers = [*found.answers, answer.model_copy(update=moved)]
                found = found.model_copy(update={"trials": [*found.trials, *other.trials], "answers": answers})
            write_json(folder.path / PLANNER_FILE, found.model_dump(mode="json"))
            write_json(folder.path / PLAN_FILE, found.plan)
            folder.finish("plan")
        return PlanReport.model_validate(folder.read(PLANNER_FILE))


def outline_plan(
    recipe: Recipe, *, budgets: Sequence[Budget], runtime: RuntimeConfig, config: PlannerConfig | None = None
) -> PlanOutline:
    """What ``plan`` is going to measure, and about how long it takes."""
    config = config or PlannerConfig()
    named = ", ".join(budget.describe() for budget in budgets)
    return PlanOutline(lines=[f"{config.trials} plans for {named} in {runtime.backend}"], seconds=60.0 * len(budgets))


class _Planning:
    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        dense: nn.Module,
        budget: Budget,
        runtime: RuntimeConfig,
        config: PlannerConfig,
        progress: ProgressCallback,
    ) -> None:
        self.recipe, self.folder, self.model, self.budget = recipe, folder, dense, budget
        self.runtime, self.config, self.progress = runtime, config, progress
        self.dense = plan_of(dense)

    def run(self) -> PlanReport:
        analysis = self._analysis()
        limit, dense_ms, price = self._limit()
        found = compositions(self.dense, limit * (_MARGIN if self._is_timed else 1.0), price, analysis)
        if not found:
            raise ConfigError(
                f"no composition of up to three methods is expected to take {limit:.0%} of the dense model's "
                f"{self.budget.measure} or less; ask for less, or start from a smaller model"
            )
        meter = self._meter()
        candidates = rank(found, self.dense, meter, analysis, measured=self.config.measured, progress=self.progress)
        trials = self._trials(candidates, limit)
        trained, steps = self._recover(trials, meter)
        errors = [abs(one.predicted / one.measured - 1.0) for one in trained if one.measured is not None]
        chosen = max(range(len(trained)), key=lambda index: (len(trained[index].rungs), -_score(trained[index])))
        data = self.recipe.data
        return PlanReport(
            model=self.recipe.model.name,
            data="" if data is None else data.source,
            runtime=self.runtime if self._is_timed else None,
            config=self.config,
            dense_ms=dense_ms,
            dense=meter.of(self.model),
            prediction_error=median(errors) if errors else None,
            trials=trained,
            answers=[
                Answer(budget=self.budget, limit=limit, found=len(found), trials=[*range(len(trained))], chosen=chosen)
            ],
            recovery_steps=steps,
            environment=environment(),
        )

    @property
    def _is_timed(self) -> bool:
        return self.budget.measure == "time"

    def _analysis(self) -> AnalysisReport:
        assert self.recipe.data is not None
        section = self.recipe.analyze or AnalyzeSection.model_validate({})
        images = analysis_images(self.recipe, self.recipe.data, section, self.model)
        return analyze_once(
            self.model,
            images,
            images=section.images,
            replacement_images=section.replacement_images,
            progress=self.progress,
        )

    def _limit(self) -> tuple[float, float | None, Any]:
        """The limit, the dense latency, and what prices a plan."""
        whole = cost(self.dense)
        if self.budget.measure == "macs":
            return self.budget.limit(self.dense, None), None, lambda plan: cost(plan).macs / whole.macs
        if self.budget.measure == "parameters":
            return self.budget.limit(self.dense, None), None, lambda plan: cost(plan).parameters / whole.parameters
        probes = probes_once(self.model, self.runtime, times_folder(), progress=self.progress)
        times = StepTimes(self.dense, probes)
        return self.budget.limit(self.dense, probes.dense_ms), probes.dense_ms, times.predict

    def _meter(self) -> DamageMeter:
        data = self.recipe.data
        assert data is not None
        wanted = self.config.fitted + self.config.held_out
        labels: dict[str, Any] = {"labels": "ignore"} if data.labels == "ignore" else labels_for(self.model)
        loader = open_loader(
            data_config(data), self.model, split="train", batch_size=data.batch_size, limit=wanted,
            seed=self.recipe.seed, **labels,
        )  # fmt: skip
        if loader.num_images < 16:
            raise ConfigError(f"{loader.origin} has {loader.num_images} images; planning needs 16 at least")
        batches = [batch.to(next(self.model.parameters()).device) for batch in loader]
        cut = max(1, round(len(batches) * self.config.fitted / wanted))
        fitted, held_out = batches[:cut], batches[cut:] or batches[:1]
        known = [batch.labels for batch in held_out if batch.labels is not None]
        return DamageMeter(
            self.model,
            [batch.images for batch in fitted],
            [batch.images for batch in held_out],
            known if len(known) == len(held_out) else None,
        )

    def _trials(self, candidates: Sequence[Candidate], limit: float) -> list[Trial]:
        """The plans to train: of different kinds, and within the budget as measured."""
        chosen = best_of_each_kind(candidates, 2 * self.config.trials)
        measured: dict[str, float] = {}
        if self._is_timed:
            for first in range(0, len(chosen), 6):
                group = {
                    str(index): chosen[index].composition.plan for index in range(first, min(first + 6, len(chosen)))
                }
                measured |= measure_plans(self.model, group, self.runtime)[0]
        trials = [_trial(one, measured.get(str(index))) for index, one in enumerate(chosen)]
        within = [one for one in trials if not self._is_timed or (one.measured or math.inf) <= limit * _TOLERANCE]
        if not within:
            best = min((one.measured for one in trials if one.measured is not None), default=None)
            reached = "none could be measured" if best is None else f"the fastest reached {1 / best:.2f}x"
            raise ConfigError(
                f"no plan takes {limit:.0%} of the dense model's time or less as measured: {reached}; measure on a "
                "quiet machine, or ask for less"
            )
        return sorted(within, key=lambda one: one.damage.kl)[: self.config.trials]

    def _recover(self, trials: list[Trial], meter: DamageMeter) -> tuple[list[Trial], int]:
        """Successive halving: all are trained for a short while, the better half for twice as long, and so on."""
        found = list(trials)
        running = list(range(len(trials)))
        rounds = max(1, math.ceil(math.log2(max(2, len(trials)))))
        total = self._final_steps() * self.config.recovery
        spent = 0
        for _ in range(rounds):
            if len(running) < 2 or not self.config.recovery:
                break
            steps = max(self.config.shortest, round(total / rounds / len(running)))
            place = self.folder.path / "trials" / f"{steps}-steps"
            recipes = {f"trial-{index}": self._short(found[index], steps, place) for index in running}
            run_side_by_side(recipes, place, overwrite=True, progress=self.progress)
            for index in running:
                student = on_device(load(place / f"trial-{index}"), self.recipe.device).eval()
                rung = Rung(steps=steps, damage=meter.of(student))
                found[index] = found[index].model_copy(update={"rungs": [*found[index].rungs, rung]})
            spent += steps * len(running)
            running = sorted(running, key=lambda index: _score(found[index]))[: math.ceil(len(running) / 2)]
        return found, spent

    def _final_steps(self) -> int:
        distill, data = self.recipe.distill, self.recipe.data
        assert data is not None
        if distill is None:
            return 0
        if distill.steps is not None:
            return distill.steps
        loader = open_loader(
            data_config(data), self.model, split="train", training=True, batch_size=data.batch_size,
            limit=data.train_limit, labels="ignore",
        )  # fmt: skip
        return max(1, round((distill.epochs or 1.0) * len(loader)))

    def _short(self, trial: Trial, steps: int, place: Path) -> Recipe:
        path = place / f"{_digest(trial)}.plan.json"
        write_json(path, trial.plan)
        distill = self.recipe.distill or DistillConfig()
        return self.recipe.model_copy(
            update={
                "plan": str(path),
                "convert": (),
                "analyze": None,
                "warm_start": WarmStartConfig(steps=0, tensorboard=False),
                "distill": distill.model_copy(update={"steps": steps, "epochs": None, "tensorboard": False}),
                "evaluate": False,
                "export": None,
                "bench": None,
                "report": False,
                "finetune_dense": False,
            }
        )


def times_folder() -> Path:
    """Where measured times are kept: ``times`` in $VITSLIM_CACHE, else in ~/.cache/vitslim."""
    return Path(os.environ.get("VITSLIM_CACHE") or Path.home() / ".cache" / "vitslim") / "times"


def _trial(candidate: Candidate, measured: float | None) -> Trial:
    composition = candidate.composition
    costs = cost(composition.plan)
    return Trial(
        name=describe(composition),
        kind="method" if len(composition.entries) == 1 else "methods",
        entries=[dict(entry) for entry in composition.entries],
        plan=plan_json(composition.plan),
        macs=costs.macs,
        parameters=costs.parameters,
        predicted=composition.price,
        measured=measured,
        expected_kl=candidate.expected,
        damage=candidate.damage,
    )


def describe(composition: Composition) -> str:
    """Methods with their options: ``depth keep=9 + mlp keep=0.5 widths=even``."""
    return " + ".join(
        " ".join([str(entry["method"]), *(f"{k}={v}" for k, v in entry.items() if k != "method" and v is not None)])
        for entry in composition.entries
    )


def _score(trial: Trial) -> float:
    """What trials are compared by: the loss to the labels where there are any, else the divergence."""
    damage = trial.rungs[-1].damage if trial.rungs else trial.damage
    return damage.kl if damage.loss is None else damage.loss


def _digest(trial: Trial) -> str:
    return hashlib.sha256(json.dumps(trial.plan, sort_keys=True).encode()).hexdigest()[:16]
