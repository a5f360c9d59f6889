"""One task: its dense model, the rivals and the planner's plans at every target, and their training."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

from vitslim import checkpoint
from vitslim.analysis import AnalysisReport, analyze_once
from vitslim.errors import ConfigError, VitslimError
from vitslim.files import digest_of, read_json, write_json
from vitslim.models import init_from_scratch_
from vitslim.opening import open_model
from vitslim.pipeline.choices import advise, plan_all
from vitslim.pipeline.cost import COST_FILE
from vitslim.pipeline.inputs import analysis_images, file_state, open_source
from vitslim.pipeline.planner_bench.preset import PlannerPreset, Rival, Task
from vitslim.pipeline.planner_bench.strengths import Strengths
from vitslim.pipeline.planning import TOLERANCE
from vitslim.pipeline.planning import plan as find_plans
from vitslim.pipeline.planning.images import open_meter
from vitslim.pipeline.running import METRICS_FILE
from vitslim.pipeline.side_by_side import run_side_by_side
from vitslim.planner import (
    Budget,
    Compositions,
    DamageMeter,
    RuntimeConfig,
    SharesOfPlans,
    StepTimes,
    correlations,
    figures_of,
    measure_models,
    prediction_errors,
    probes_once,
    rank_correlations,
)
from vitslim.planner.comparison import FINE_TUNED, PLANNER, SIBLING, Student, Way
from vitslim.planner.times import times_folder
from vitslim.plans import ModelPlan, cost, plan_json
from vitslim.progress import Progress, ProgressCallback
from vitslim.recipe import AnalyzeSection, ModelSection, Recipe
from vitslim.train import DistillConfig, WarmStartConfig
from vitslim.trunk import plan_of

_LIMITS = (0.85, 0.7, 0.55, 0.4)
"""Of the plans whose predicted times are checked."""
_TOGETHER = 8
"""Trainings between two looks at the clock."""


class TaskRun:
    """One task: its dense model, the rivals at every target, the planner's plans, and the training of them all.

    What is measured once lies in a JSON file named after all that it depends on.
    """

    def __init__(
        self, name: str, task: Task, preset: PlannerPreset, folder: Path, progress: ProgressCallback, end: float | None
    ) -> None:
        # However the folder is named: what is known is found again.
        self.name, self.task, self.preset, self.folder = name, task, preset, folder.resolve()
        self.progress, self._end = progress, end

    def train(self, seed: int) -> None:
        """Train the dense model, the rivals and the planner's students with one seed, as far as time allows.

        With the first seed all of them, with the others those that may be the best at a target.
        """
        if self._is_over:
            return
        ways = self.ways()
        self._train_siblings()
        recipes = {FINE_TUNED: self._recipe(seed, convert=())}
        recipes |= {way.digest: self._way_recipe(way, seed) for way in self._wanted(ways, seed)}
        self._train(recipes, self.folder / f"seed-{seed}")

    def left(self) -> list[str]:
        """What is not trained or measured yet."""
        missing = [f"{self.name}: {runtime_name(one)}" for one in self.preset.runtimes if not self._is_planned(one)]
        ways = self.ways()
        for seed in self.preset.seeds:
            names = [FINE_TUNED, *(way.digest for way in self._wanted(ways, seed))]
            absent = [name for name in dict.fromkeys(names) if not self._is_trained(name, seed)]
            missing += [f"{self.name}: {name}, seed {seed}" for name in absent]
        times = [runtime_name(one) for one in self.preset.checked if not self._found(f"times-{runtime_name(one)}")]
        return missing + [f"{self.name}: times of random plans, {name}" for name in times]

    @property
    def _is_over(self) -> bool:
        return self._end is not None and time.monotonic() > self._end

    def _train(self, recipes: Mapping[str, Recipe], folder: Path) -> None:
        """Those that are not trained yet, a few at a time, until the time is over."""
        wanted = [name for name in recipes if not (folder / name / METRICS_FILE).is_file()]
        for first in range(0, len(wanted), _TOGETHER):
            if self._is_over:
                return
            group = {name: recipes[name] for name in wanted[first : first + _TOGETHER]}
            run_side_by_side(group, folder, overwrite=True, progress=self.progress)

    def _is_trained(self, name: str, seed: int) -> bool:
        return (self.folder / f"seed-{seed}" / name / METRICS_FILE).is_file()

    def _is_planned(self, runtime: RuntimeConfig) -> bool:
        return bool(self._found(f"planned-{runtime_name(runtime)}"))

    def _found(self, name: str) -> list[Path]:
        """Files of what some work found."""
        return sorted(self.folder.glob(f"{name}-*.json"))

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

    def ways(self) -> list[Way]:
        """Everything that is fast enough at a target, the planner's plan last, as far as it is known or time allows."""
        runtimes = [one for one in self.preset.runtimes if self._is_planned(one) or not self._is_over]
        return [way for runtime in runtimes for way in [*self._rivals(runtime)[0], *self._planned(runtime)]]

    @cached_property
    def _weights(self) -> Any:
        """The dense model's name, and the state of its file where it was trained here."""
        return [self._start, file_state(ModelSection(name=self._start))]

    @cached_property
    def dense(self) -> nn.Module:
        return open_model(self._start).eval()

    @cached_property
    def _start(self) -> str:
        """The dense model's name, or the folder that it was saved in, trained for this task if need be."""
        if self.task.teacher is None and self.task.model == ModelSection(name=self.task.model.name):
            return self.task.model.name
        if self.task.teacher is None:
            if not checkpoint.is_saved_model(self.folder / "dense"):
                checkpoint.save(open_source(self._recipe(0, model=self.task.model)), self.folder / "dense")
        elif not (self.folder / "dense" / METRICS_FILE).is_file():
            start = self._from_nothing({})
            recipe = self._recipe(0, model=ModelSection(name=start), distill=self.task.teacher)
            run_side_by_side({"dense": recipe}, self.folder, overwrite=True, progress=self.progress)
        return str(self.folder / "dense")

    def _recipe(self, seed: int, **sections: Any) -> Recipe:
        given: dict[str, Any] = {
            "data": self.task.data,
            "distill": self.task.distill.model_copy(update={"seed": seed}),
            "device": self.preset.device,
            "seed": seed,
            "report": False,
        }
        if "model" not in sections:
            given["model"] = ModelSection(name=self._start)
        return Recipe(**{**given, **sections})

    def _way_recipe(self, way: Way, seed: int) -> Recipe:
        if way.sibling is not None:
            budget = self.task.distill.model_copy(update={"seed": seed, "token_weight": 0.0, "step_output_weight": 0.0})
            start = ModelSection(name=self._from_nothing(way.sibling, self.task.teacher))
            return self._recipe(seed, model=start, teacher=self._start, distill=budget)
        path = self.folder / "plans" / f"{way.digest}.json"
        if not path.is_file():
            write_json(path, way.plan)
        return self._recipe(seed, plan=str(path), warm_start=way.warm_start)

    def _from_nothing(self, changes: Mapping[str, Any], training: DistillConfig | None = None) -> str:
        """The folder of a model of this kind with random weights, or with those that a training gave it."""
        section = self.task.model
        name = "-".join(["start", *(f"{key}-{value}" for key, value in changes.items())])
        place, trained = self.folder / name, self.folder / f"{name}-trained"
        if not checkpoint.is_saved_model(place):
            model = open_model(
                section.name,
                pretrained=False,
                img_size=section.img_size,
                num_classes=section.num_classes,
                **{**section.options, **changes},
            )
            checkpoint.save(init_from_scratch_(model), place)
        return str(place if training is None or not changes else trained)

    def _train_siblings(self) -> None:
        """Give the smaller models that are fast enough the training that the dense one had."""
        wanted: dict[str, Recipe] = {}
        for sibling in [way.sibling for way in self.ways() if way.sibling] if self.task.teacher else ():
            place = Path(self._from_nothing(sibling, self.task.teacher))
            if not (place / METRICS_FILE).is_file():
                start = ModelSection(name=self._from_nothing(sibling))
                wanted[place.name] = self._recipe(0, model=start, distill=self.task.teacher)
        self._train(wanted, self.folder)

    def _shares(self, runtime: RuntimeConfig) -> SharesOfPlans:
        return SharesOfPlans(self.dense, runtime, times_folder())

    def _times(self, runtime: RuntimeConfig) -> StepTimes:
        return StepTimes(plan_of(self.dense), probes_once(self.dense, runtime, times_folder(), progress=self.progress))

    @cached_property
    def _meter(self) -> DamageMeter:
        return open_meter(self._recipe(0), self.dense, self.preset.planner, self.folder)

    @cached_property
    def _analysis(self) -> AnalysisReport:
        section = AnalyzeSection(images=512, replacement_images=64)
        images = analysis_images(self._recipe(0), self.task.data, section, self.dense)
        return analyze_once(
            self.dense,
            images,
            images=section.images,
            replacement_images=section.replacement_images,
            progress=self.progress,
        )

    def _plan(self, entries: Sequence[Mapping[str, Any]]) -> ModelPlan | None:
        """The plan of some methods, ``None`` where they refuse this model."""
        dense = plan_of(self.dense)
        try:
            return plan_all(entries, dense, advise(entries, dense, self._analysis))[0]
        except VitslimError:
            return None

    def _once(self, name: str, inputs: Any, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What some work found, read from its file where it was done before with the same inputs."""
        path = self.folder / f"{name}-{digest_of(inputs, 12)}.json"
        if not path.is_file():
            write_json(path, work())
        return read_json(path)

    def _rivals(self, runtime: RuntimeConfig) -> tuple[list[Way], list[dict[str, Any]]]:
        """The rivals that reach a target in a runtime, the mildest of each, and those that do not."""
        words = [self._weights, self.preset.speedups, runtime]
        found: list[dict[str, Any]] = []
        for name, rival in self.preset.rivals.items():
            work = partial(self._measured_rival, name, rival, runtime)
            found.append(self._once(f"rivals/{name}-{runtime_name(runtime)}", [*words, rival], work))
        work = partial(self._measured_siblings, runtime)
        found.append(self._once(f"rivals/{SIBLING}-{runtime_name(runtime)}", [*words, self.task.siblings], work))
        reached = [Way.model_validate(one) for part in found for one in part["reached"]]
        return reached, [one for part in found for one in part["unreached"]]

    def _measured_rival(self, name: str, rival: Rival, runtime: RuntimeConfig) -> dict[str, Any]:
        reached: list[dict[str, Any]] = []
        unreached: list[dict[str, Any]] = []
        steps = [(entries, plan) for entries in rival.entries() if (plan := self._plan(entries)) is not None]
        shares = Strengths([plan for _, plan in steps], self._times(runtime).predict, self._shares(runtime))
        for speedup in self.preset.speedups:
            index = shares.mildest(1.0 / speedup)
            target = self._target(runtime, speedup, name)
            if index is None:
                best = min(shares.known.values(), default=float("inf"))
                unreached.append({**target, "best": 1.0 / best})
                continue
            entries, plan = steps[index]
            way = Way(
                **target,
                entries=[dict(entry) for entry in entries],
                plan=plan_json(plan),
                warm_start=rival.warm_start,
                share=shares.known[index],
            )
            reached.append(way.model_dump(mode="json"))
        self.progress(Progress(f"{self.name}: times of {name}", 1, 1, "done"))
        return {"reached": reached, "unreached": unreached}

    def _target(self, runtime: RuntimeConfig, speedup: float, way: str) -> dict[str, Any]:
        return {"task": self.name, "runtime": runtime_name(runtime), "speedup": speedup, "way": way}

    def _measured_siblings(self, runtime: RuntimeConfig) -> dict[str, Any]:
        models = {
            str(index): open_model(self._from_nothing(one)).eval() for index, one in enumerate(self.task.siblings)
        }
        shares = measure_models({"dense": self.dense, **models}, runtime)[0] if models else {}
        reached: list[dict[str, Any]] = []
        unreached: list[dict[str, Any]] = []
        for speedup in self.preset.speedups:
            target = self._target(runtime, speedup, SIBLING)
            fast = [index for index, share in shares.items() if share <= TOLERANCE / speedup]
            if not fast:
                unreached.append({**target, "best": None if not shares else 1.0 / min(shares.values())})
                continue
            first = min(fast, key=int)
            way = Way(**target, entries=[], plan=None, sibling=self.task.siblings[int(first)], share=shares[first])
            reached.append(way.model_dump(mode="json"))
        return {"reached": reached, "unreached": unreached}

    def _planned(self, runtime: RuntimeConfig) -> list[Way]:
        """The planner's answers in a runtime, one for each target that it reaches."""
        words = [self._weights, self.preset.speedups, self.preset.planner, self.task.distill, runtime]
        found = self._once(f"planned-{runtime_name(runtime)}", words, partial(self._find_plans, runtime))
        return [Way.model_validate(one) for one in found["reached"]]

    def _find_plans(self, runtime: RuntimeConfig) -> dict[str, Any]:
        asked, unreached = sorted(self.preset.speedups), list[dict[str, Any]]()
        while True:
            try:
                report = find_plans(
                    self._recipe(0, evaluate=False),
                    self.folder / f"planner-{runtime_name(runtime)}",
                    budgets=[Budget(speedup=speedup) for speedup in asked],
                    runtime=runtime,
                    config=self.preset.planner,
                    overwrite=True,
                    progress=self.progress,
                )
                break
            except ConfigError:  # the fastest is out of reach
                if len(asked) == 1:
                    raise
                unreached.append({**self._target(runtime, asked.pop(), PLANNER), "best": None})
        reached: list[dict[str, Any]] = []
        for answer in report.answers:
            trial = report.trials[answer.chosen]
            way = Way(
                task=self.name,
                runtime=runtime_name(runtime),
                speedup=1.0 / answer.limit,
                way=PLANNER,
                entries=[{"name": trial.name}],
                plan=trial.plan,
                share=trial.share,
                warm_start=WarmStartConfig(steps=0, tensorboard=False),
            )
            reached.append(way.model_dump(mode="json"))
        found = report.model_dump(mode="json", include={"prediction_error", "recovery_steps", "seconds", "images"})
        correlations = rank_correlations(report.trials)
        target = {"task": self.name, "runtime": runtime_name(runtime), "trials": len(report.trials)}
        return {
            "reached": reached,
            "unreached": unreached,
            "planning": {**target, **found, "correlations": correlations},
        }

    def _checked_times(self, runtime: RuntimeConfig) -> dict[str, Any]:
        """Predicted against measured times of random compositions."""
        times = self._times(runtime)
        space = Compositions(plan_of(self.dense), times.predict, self._analysis)
        pool = {one.plan.model_dump_json(): one.plan for limit in _LIMITS for one in space.meeting(limit)}
        plans = random.Random(0).sample(list(pool.values()), min(self.preset.checked_plans, len(pool)))
        shares = self._shares(runtime)(plans, what="random plans", progress=self.progress)
        known = [(plan, share) for plan, share in zip(plans, shares, strict=True) if share is not None]
        errors = prediction_errors(times, [plan for plan, _ in known], [share for _, share in known])
        target = {"task": self.name, "runtime": runtime_name(runtime)}
        return {**target, "errors": errors, "median": median(map(abs, errors)) if errors else None}

    def students(self) -> list[Student]:
        """All ways with what is known of their training."""
        return [self._student(way) for way in self.ways()]

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

    def planning(self) -> list[dict[str, Any]]:
        """How each search went."""
        found = [self._found(f"planned-{runtime_name(runtime)}") for runtime in self.preset.runtimes]
        return [read_json(path)["planning"] for paths in found for path in paths[-1:]]

    def check_times(self) -> None:
        """Measure how far predicted times of random plans are off, in every runtime that is to be checked."""
        for runtime in self.preset.checked if self.preset.checked_plans else ():
            if not self._is_over:
                words = [self._weights, self.preset.checked_plans, runtime]
                self._once(f"times-{runtime_name(runtime)}", words, partial(self._checked_times, runtime))

    def measure_starts(self) -> None:
        """Measure what is known of every student's plan before it is trained."""
        for way in self.ways():
            if way.plan is not None and not self._is_over and not self._found(f"starts/{way.digest}"):
                self._once(f"starts/{way.digest}", [self._weights, way.plan], partial(self._start_of, way.plan))

    def _start_of(self, document: dict[str, Any]) -> dict[str, float]:
        plan = ModelPlan.model_validate(document)
        damage, costs = self._meter(plan), cost(plan)
        return {
            "KL at the start": damage.kl,
            "disagreement at the start": 1.0 - damage.agreement,
            "fewer MACs": -float(costs.macs),
            "fewer parameters": -float(costs.parameters),
            **figures_of(plan, self._analysis),
        }

    def foretold(self) -> dict[str, float]:
        """Rank correlations of what is known before training with the error of all students made of plans."""
        first = self.preset.seeds[0]
        ways = {way.digest: way for way in self.ways() if self._is_trained(way.digest, first)}
        starts = {name: read_json(paths[-1]) for name in ways if (paths := self._found(f"starts/{name}"))}
        names = dict.fromkeys(name for one in starts.values() for name in one)
        columns = {name: [one[name] for one in starts.values()] for name in names}
        return correlations(columns, [1.0 - self._top1(ways[name], first) for name in starts])

    def checked_times(self) -> list[dict[str, Any]]:
        """What that found."""
        found = [self._found(f"times-{runtime_name(runtime)}") for runtime in self.preset.checked]
        return [read_json(path) for paths in found for path in paths[-1:]]

    def unreached(self) -> list[dict[str, Any]]:
        """Rivals that are not fast enough at any strength."""
        planned = [one for one in self.preset.runtimes if self._is_planned(one)]
        rivals = [one for runtime in planned for one in self._rivals(runtime)[1]]
        found = [read_json(self._found(f"planned-{runtime_name(runtime)}")[-1]) for runtime in planned]
        return rivals + [one for plans in found for one in plans.get("unreached", [])]


def runtime_name(runtime: RuntimeConfig) -> str:
    """As files and tables call it: ``ort-b1-fp32``."""
    return f"{runtime.backend}-b{runtime.batch}-{runtime.precision}"
