"""One task: the training of its dense model, of the rivals and of the planner's students, and what came of it."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from vitslim.files import read_json, write_json
from vitslim.pipeline.cost import COST_FILE
from vitslim.pipeline.planner_bench.preset import PlannerPreset, Task
from vitslim.pipeline.planner_bench.subject import Subject
from vitslim.pipeline.planner_bench.ways import Ways, runtime_name
from vitslim.pipeline.running import METRICS_FILE
from vitslim.pipeline.side_by_side import run_side_by_side
from vitslim.planner import Compositions, RuntimeConfig, correlations, figures_of, fitted_on_others, prediction_errors
from vitslim.planner.comparison import FINE_TUNED, PLANNER, Student, Way
from vitslim.plans import ModelPlan, cost
from vitslim.progress import ProgressCallback
from vitslim.recipe import ModelSection, Recipe
from vitslim.trunk import plan_of

_LIMITS = (0.85, 0.7, 0.55, 0.4)
"""Of the plans whose predicted times are checked."""
_TOGETHER = 8
"""Trainings between two looks at the clock."""


class TaskRun:
    """The students of one task.

    Args:
        end: of the time, on the monotonic clock; nothing begins after it.
    """

    def __init__(
        self, name: str, task: Task, preset: PlannerPreset, folder: Path, progress: ProgressCallback, end: float | None
    ) -> None:
        self.subject = Subject(name, task, preset, folder, progress)
        self.ways = Ways(self.subject)
        self.name, self.task, self.preset, self.folder = name, task, preset, self.subject.folder
        self._end = end

    def train(self, seed: int) -> None:
        """Train the dense model, the rivals and the planner's students with one seed, as far as time allows.

        With the first seed all of them, with the others those that may be the best at a target.
        """
        if self._is_over:
            return
        self._train_siblings()
        recipes = {FINE_TUNED: self.subject.recipe(seed, convert=())}
        recipes |= {way.digest: self._way_recipe(way, seed) for way in self._wanted(self._ways(), seed)}
        self._train(recipes, self.folder / f"seed-{seed}")

    def left(self) -> list[str]:
        """What is not trained or measured yet."""
        missing = [f"{self.name}: {runtime_name(one)}" for one in self.preset.runtimes if not self.ways.is_planned(one)]
        ways = self._ways()
        for seed in self.preset.seeds:
            names = [FINE_TUNED, *(way.digest for way in self._wanted(ways, seed))]
            absent = [name for name in dict.fromkeys(names) if not self._is_trained(name, seed)]
            missing += [f"{self.name}: {name}, seed {seed}" for name in absent]
        times = [
            runtime_name(one) for one in self.preset.checked if not self.subject.found(f"times-{runtime_name(one)}")
        ]
        return missing + [f"{self.name}: times of random plans, {name}" for name in times]

    @property
    def _is_over(self) -> bool:
        return self._end is not None and time.monotonic() > self._end

    def _ways(self) -> list[Way]:
        """As far as they are known, or time allows."""
        return self.ways.all(new=not self._is_over)

    def _train(self, recipes: Mapping[str, Recipe], folder: Path) -> None:
        """Those that are not trained yet, a few at a time, until the time is over."""
        wanted = [name for name in recipes if not (folder / name / METRICS_FILE).is_file()]
        for first in range(0, len(wanted), _TOGETHER):
            if self._is_over:
                return
            group = {name: recipes[name] for name in wanted[first : first + _TOGETHER]}
            run_side_by_side(group, folder, overwrite=True, progress=self.subject.progress)

    def _is_trained(self, name: str, seed: int) -> bool:
        return (self.folder / f"seed-{seed}" / name / METRICS_FILE).is_file()

    def _wanted(self, ways: Sequence[Way], seed: int) -> list[Way]:
        """All with the first seed; with the others the planner's, and what came close to the best at its target."""
        first = self.preset.seeds[0]
        if seed == first:
            return list(ways)
        top1 = {way.digest: self._top1(way, first) for way in ways if self._is_trained(way.digest, first)}
        best: dict[tuple[str, float], float] = {}
        for way in ways:
            target = (way.runtime, way.speedup)
            best[target] = max(best.get(target, 0.0), top1.get(way.digest, 0.0))
        least = {target: value - self.preset.close / 100 for target, value in best.items()}
        return [
            way
            for way in ways
            if way.way == PLANNER or (way.digest in top1 and top1[way.digest] >= least[way.runtime, way.speedup])
        ]

    def _top1(self, way: Way, seed: int) -> float:
        return float(read_json(self.folder / f"seed-{seed}" / way.digest / METRICS_FILE)["student"]["top1"])

    def _way_recipe(self, way: Way, seed: int) -> Recipe:
        if way.sibling is not None:
            budget = self.task.distill.model_copy(update={"seed": seed, "token_weight": 0.0, "step_output_weight": 0.0})
            start = ModelSection(name=self.subject.from_nothing(way.sibling, self.task.teacher))
            return self.subject.recipe(seed, model=start, teacher=self.subject.start, distill=budget)
        path = self.folder / "plans" / f"{way.digest}.json"
        if not path.is_file():
            write_json(path, way.plan)
        budget = self.task.distill.model_copy(update={"seed": seed})
        return self.subject.recipe(seed, plan=str(path), warm_start=way.warm_start, distill=budget)

    def _train_siblings(self) -> None:
        """Give the smaller models that are fast enough the training that the dense one had."""
        wanted: dict[str, Recipe] = {}
        for sibling in [way.sibling for way in self._ways() if way.sibling] if self.task.teacher else ():
            place = Path(self.subject.from_nothing(sibling, self.task.teacher))
            if not (place / METRICS_FILE).is_file():
                start = ModelSection(name=self.subject.from_nothing(sibling))
                wanted[place.name] = self.subject.recipe(0, model=start, distill=self.task.teacher)
        self._train(wanted, self.folder)

    def _checked_times(self, runtime: RuntimeConfig) -> dict[str, Any]:
        """Predicted against measured times of random compositions."""
        times = self.subject.times(runtime)
        space = Compositions(plan_of(self.subject.dense), times.predict, self.subject.analysis)
        pool = {one.plan.model_dump_json(): one.plan for limit in _LIMITS for one in space.meeting(limit)}
        plans = random.Random(0).sample(list(pool.values()), min(self.preset.checked_plans, len(pool)))
        shares = self.subject.shares(runtime)(plans, what="random plans", progress=self.subject.progress)
        known = [(plan, share) for plan, share in zip(plans, shares, strict=True) if share is not None]
        errors = prediction_errors(times, [plan for plan, _ in known], [share for _, share in known])
        target = {"task": self.name, "runtime": runtime_name(runtime)}
        return {**target, "errors": errors, "median": median(map(abs, errors)) if errors else None}

    def students(self) -> list[Student]:
        """All ways with what is known of their training."""
        return [self._student(way) for way in self._ways()]

    def _student(self, way: Way) -> Student:
        folders = {seed: self.folder / f"seed-{seed}" / way.digest for seed in self.preset.seeds}
        done = {
            seed: read_json(place / METRICS_FILE) for seed, place in folders.items() if (place / METRICS_FILE).is_file()
        }
        costs = read_json(folders[min(done)] / COST_FILE) if done else {}
        return Student(
            **way.model_dump(include={"task", "runtime", "speedup", "way", "entries", "share"}),
            digest=way.digest,
            top1={str(seed): found["student"]["top1"] for seed, found in done.items()},
            loss={str(seed): found["student"]["loss"] for seed, found in done.items()},
            macs=costs.get("macs"),
            params=costs.get("params"),
        )

    def finetuned(self) -> dict[str, float]:
        """Top-1 of the dense model after the students' budget, by seed."""
        places = {seed: self.folder / f"seed-{seed}" / FINE_TUNED / METRICS_FILE for seed in self.preset.seeds}
        return {str(seed): read_json(place)["student"]["top1"] for seed, place in places.items() if place.is_file()}

    def images(self) -> int:
        """How many are held out; 0 before the first training."""
        places = sorted(self.folder.glob(f"seed-*/{FINE_TUNED}/{METRICS_FILE}"))
        return int(read_json(places[0])["student"]["images"]) if places else 0

    def check_times(self) -> None:
        """Measure how far predicted times of random plans are off, in every runtime that is to be checked."""
        for runtime in self.preset.checked if self.preset.checked_plans else ():
            if not self._is_over:
                words = [self.subject.weights, self.preset.checked_plans, runtime]
                self.subject.once(f"times-{runtime_name(runtime)}", words, partial(self._checked_times, runtime))

    def measure_starts(self) -> None:
        """Measure what is known of every student's plan before it is trained."""
        for way in self._ways():
            name = f"starts/{way.digest}"
            if way.plan is not None and not self._is_over and not self.subject.found(name):
                self.subject.once(name, [self.subject.weights, way.plan], partial(self._start_of, way.plan))

    def _start_of(self, document: dict[str, Any]) -> dict[str, float]:
        plan = ModelPlan.model_validate(document)
        damage, costs = self.subject.meter(plan), cost(plan)
        return {
            "KL at the start": damage.kl,
            "disagreement at the start": 1.0 - damage.agreement,
            "fewer MACs": -float(costs.macs),
            "fewer parameters": -float(costs.parameters),
            **figures_of(plan, self.subject.analysis),
        }

    def foretold(self) -> dict[str, float]:
        """Rank correlations of what is known before training with the error of all students made of plans."""
        first = self.preset.seeds[0]
        ways = {way.digest: way for way in self._ways() if self._is_trained(way.digest, first)}
        starts = {name: read_json(paths[-1]) for name in ways if (paths := self.subject.found(f"starts/{name}"))}
        names = dict.fromkeys(name for one in starts.values() for name in one)
        columns = {name: [one[name] for one in starts.values()] for name in names}
        errors = [1.0 - self._top1(ways[name], first) for name in starts]
        if len(errors) > len(names) + 1:
            columns["all of these, fitted on the other students"] = fitted_on_others(columns, errors)
        return correlations(columns, errors)

    def checked_times(self) -> list[dict[str, Any]]:
        """What that found."""
        found = [self.subject.found(f"times-{runtime_name(runtime)}") for runtime in self.preset.checked]
        return [read_json(path) for paths in found for path in paths[-1:]]
