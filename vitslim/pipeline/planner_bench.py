"""The benchmark of the planner: its students beside every simpler way that is as fast, trained with the same budget."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import Field, NonNegativeInt
from torch import nn

from vitslim import checkpoint
from vitslim.analysis import AnalysisReport, analyze_once
from vitslim.bench import environment
from vitslim.errors import ConfigError, VitslimError
from vitslim.files import read_json, write_json
from vitslim.models import init_from_scratch_
from vitslim.opening import open_model
from vitslim.pipeline.choices import advise, plan_all
from vitslim.pipeline.cost import COST_FILE
from vitslim.pipeline.inputs import analysis_images, file_state
from vitslim.pipeline.planning import TOLERANCE, times_folder
from vitslim.pipeline.planning import plan as find_plans
from vitslim.pipeline.running import METRICS_FILE
from vitslim.pipeline.side_by_side import run_side_by_side
from vitslim.planner import (
    Budget,
    Compositions,
    PlannerConfig,
    RuntimeConfig,
    SharesOfPlans,
    StepTimes,
    measure_models,
    prediction_errors,
    probes_once,
    rank_correlations,
)
from vitslim.plans import ModelPlan, plan_json
from vitslim.progress import Progress, ProgressCallback, silent
from vitslim.recipe import AnalyzeSection, DataSection, ModelSection, Recipe, read_settings_file, with_overrides
from vitslim.shapes import Config, Result
from vitslim.train import DistillConfig, WarmStartConfig
from vitslim.trunk import plan_of
from vitslim.validation import validated

PRESETS = ("cpu", "gpu")
REPORT_FILE = "planner-bench.json"
FINE_TUNED, PLANNER, SIBLING = "dense-finetuned", "planner", "smaller-sibling"
_LIMITS = (0.85, 0.7, 0.55, 0.4)
"""Of the plans whose predicted times are checked."""


class Rival(Config):
    """A simpler way, at one strength or at several, the mildest first."""

    convert: tuple[dict[str, Any], ...] = Field(min_length=1)  # as in a recipe
    option: str | None = None  # of the last method, that takes the values
    values: tuple[Any, ...] = ()
    warm_start: WarmStartConfig | None = WarmStartConfig(steps=0, tensorboard=False)

    def entries(self) -> list[tuple[Mapping[str, Any], ...]]:
        """The methods at every strength."""
        if self.option is None:
            return [self.convert]
        *before, last = self.convert
        return [(*before, {**last, self.option: value}) for value in self.values]


class Task(Config):
    """A model, its images and the budget of all its students."""

    model: ModelSection
    data: DataSection
    teacher: DistillConfig | None = None  # of a model that has to be trained first, from nothing
    distill: DistillConfig
    siblings: tuple[dict[str, Any], ...] = ()  # arguments of smaller models of the same kind, the largest first


class PlannerPreset(Config):
    """What is compared."""

    device: str = "cpu"
    runtimes: tuple[RuntimeConfig, ...] = Field(min_length=1)
    speedups: tuple[float, ...] = Field(min_length=1)
    seeds: tuple[NonNegativeInt, ...] = Field(min_length=1)
    close: float = Field(default=1.0, ge=0)  # points below the best of the first seed that rule out the other seeds
    planner: PlannerConfig = PlannerConfig()
    checked: tuple[RuntimeConfig, ...] = ()  # in which predicted times are compared with measured ones
    checked_plans: int = Field(default=30, ge=0)
    tasks: dict[str, Task | None]  # null: left out
    rivals: dict[str, Rival]
    define: Any = None  # lists that others repeat


class Way(Result):
    """One way to be as fast as a target asks for, before it is trained.

    Attributes:
        way: a rival's name, or the planner.
        share: its time as a share of the dense model's, measured in the same rounds when it was chosen.
        sibling: arguments of a smaller model, in place of a plan.
    """

    task: str
    runtime: str
    speedup: float
    way: str
    entries: list[dict[str, Any]]
    plan: dict[str, Any] | None
    share: float
    warm_start: WarmStartConfig | None = None
    sibling: dict[str, Any] | None = None

    @property
    def digest(self) -> str:
        """Of what is trained: ways that lead to the same plan share their trainings."""
        return _digest([self.plan, self.warm_start, self.sibling])


class Student(Result):
    """One way at one target.

    Attributes:
        way: a rival's name, or the planner.
        share: its time as a share of the dense model's, measured in the same rounds; ``None`` before that.
        top1: by seed, of the images of the task that are held out.
    """

    task: str
    runtime: str
    speedup: float
    way: str
    entries: list[dict[str, Any]]
    digest: str
    share: float | None
    top1: dict[str, float]
    loss: dict[str, float]
    macs: int | None
    params: int | None


class PlannerBenchReport(Result):
    """planner-bench.json.

    Attributes:
        finetuned: top-1 of the dense model with the students' budget, by task and seed.
        planning: what each plan took to find, by task, runtime and speedup.
        unreached: rivals that are not fast enough at any strength, by task, runtime and speedup.
        times: relative errors of predicted times of random plans, by task and runtime.
    """

    preset: str
    command: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    finetuned: dict[str, dict[str, float]]
    students: list[Student]
    planning: list[dict[str, Any]]
    unreached: list[dict[str, Any]]
    times: list[dict[str, Any]]
    images: dict[str, int]


class PlannerBench:
    """The comparison of a preset in its folder; what is done is kept, what is left is done by the next call.

    Args:
        preset: ``cpu``, ``gpu`` or a YAML file.
        overrides: assignments such as ``seeds=[0]``.

    Raises:
        ConfigError: a faulty preset.
    """

    def __init__(self, out: str | Path, *, preset: str = "cpu", overrides: Iterable[str] = ()) -> None:
        self.name, self.out = Path(preset).stem, Path(out)
        self.preset = _read_preset(preset, overrides)

    def run(self, *, command: str = "", progress: ProgressCallback = silent) -> PlannerBenchReport:
        """Measure what is left and write planner-bench.json."""
        works = {
            name: _TaskRun(name, task, self.preset, self.out / name, progress)
            for name, task in self.preset.tasks.items()
            if task is not None
        }
        for seed in self.preset.seeds:
            for work in works.values():
                work.train(seed)
                self._write(works, command, [])
        times = [found for work in works.values() for found in work.check_times()]
        return self._write(works, command, times)

    def _write(self, works: Mapping[str, _TaskRun], command: str, times: list[dict[str, Any]]) -> PlannerBenchReport:
        report = PlannerBenchReport(
            preset=self.name,
            command=command,
            settings=self.preset.model_dump(mode="json"),
            environment=environment(),
            finetuned={name: work.finetuned() for name, work in works.items()},
            students=[student for work in works.values() for student in work.students()],
            planning=[found for work in works.values() for found in work.planning()],
            unreached=[found for work in works.values() for found in work.unreached()],
            times=times,
            images={name: work.images() for name, work in works.items()},
        )
        write_json(self.out / REPORT_FILE, report.model_dump(mode="json"))
        return report


class _TaskRun:
    """One task: its dense model, the rivals at every target, the planner's plans, and the training of them all.

    What is measured once lies in a JSON file named after all that it depends on.
    """

    def __init__(self, name: str, task: Task, preset: PlannerPreset, folder: Path, progress: ProgressCallback) -> None:
        self.name, self.task, self.preset, self.folder, self.progress = name, task, preset, folder, progress

    def train(self, seed: int) -> None:
        """Train the dense model, the rivals and the planner's students with one seed.

        With the first seed all of them, with the others those that may be the best at a target.
        """
        self._train_siblings()
        recipes = {FINE_TUNED: self._recipe(seed, convert=())}
        recipes |= {way.digest: self._way_recipe(way, seed) for way in self.ways() if self._may_be_best(way, seed)}
        folder = self.folder / f"seed-{seed}"
        left = {name: recipe for name, recipe in recipes.items() if not (folder / name / METRICS_FILE).is_file()}
        if left:
            run_side_by_side(left, folder, overwrite=True, progress=self.progress)

    def _may_be_best(self, way: Way, seed: int) -> bool:
        """Whether the first seed left a way close to the best at its target."""
        first = self.preset.seeds[0]
        if seed == first or way.way == PLANNER:
            return True
        target = (way.runtime, way.speedup)
        top1 = {one.way: self._top1(one, first) for one in self.ways() if (one.runtime, one.speedup) == target}
        return top1[way.way] >= max(top1.values()) - self.preset.close / 100

    def _top1(self, way: Way, seed: int) -> float:
        return float(read_json(self.folder / f"seed-{seed}" / way.digest / METRICS_FILE)["student"]["top1"])

    def ways(self) -> list[Way]:
        """Everything that is fast enough at a target, the planner's plan last."""
        return [way for runtime in self.preset.runtimes for way in [*self._rivals(runtime)[0], *self._planned(runtime)]]

    @cached_property
    def _weights(self) -> Any:
        """The dense model's name, and the state of its file where it was trained here."""
        return [self._start, file_state(ModelSection(name=self._start))]

    @cached_property
    def dense(self) -> nn.Module:
        return open_model(self._start).eval()

    @cached_property
    def _start(self) -> str:
        """The dense model's name, or the folder of the one that was trained for this task."""
        if self.task.teacher is None:
            return self.task.model.name
        if not (self.folder / "dense" / METRICS_FILE).is_file():
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
        if wanted:
            run_side_by_side(wanted, self.folder, overwrite=True, progress=self.progress)

    def _shares(self, runtime: RuntimeConfig) -> SharesOfPlans:
        return SharesOfPlans(self.dense, runtime, times_folder())

    def _times(self, runtime: RuntimeConfig) -> StepTimes:
        return StepTimes(plan_of(self.dense), probes_once(self.dense, runtime, times_folder(), progress=self.progress))

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
        path = self.folder / f"{name}-{_digest(inputs)}.json"
        if not path.is_file():
            write_json(path, work())
        return read_json(path)

    def _rivals(self, runtime: RuntimeConfig) -> tuple[list[Way], list[dict[str, Any]]]:
        """The rivals that reach a target in a runtime, the mildest of each, and those that do not."""
        words = [self._weights, self.preset.speedups, runtime]
        found: list[dict[str, Any]] = []
        for name, rival in self.preset.rivals.items():
            work = partial(self._measured_rival, name, rival, runtime)
            found.append(self._once(f"rivals/{name}-{_name(runtime)}", [*words, rival], work))
        work = partial(self._measured_siblings, runtime)
        found.append(self._once(f"rivals/{SIBLING}-{_name(runtime)}", [*words, self.task.siblings], work))
        reached = [Way.model_validate(one) for part in found for one in part["reached"]]
        return reached, [one for part in found for one in part["unreached"]]

    def _measured_rival(self, name: str, rival: Rival, runtime: RuntimeConfig) -> dict[str, Any]:
        times = self._times(runtime)
        reached: list[dict[str, Any]] = []
        unreached: list[dict[str, Any]] = []
        steps = [(entries, plan) for entries in rival.entries() if (plan := self._plan(entries)) is not None]
        shares = _Strengths([plan for _, plan in steps], times, self._shares(runtime))
        for speedup in self.preset.speedups:
            index = shares.mildest(1.0 / speedup)
            target: dict[str, Any] = {"task": self.name, "runtime": _name(runtime), "speedup": speedup, "way": name}
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

    def _measured_siblings(self, runtime: RuntimeConfig) -> dict[str, Any]:
        models = {
            str(index): open_model(self._from_nothing(one)).eval() for index, one in enumerate(self.task.siblings)
        }
        shares = measure_models({"dense": self.dense, **models}, runtime)[0] if models else {}
        reached: list[dict[str, Any]] = []
        unreached: list[dict[str, Any]] = []
        for speedup in self.preset.speedups:
            target: dict[str, Any] = {"task": self.name, "runtime": _name(runtime), "speedup": speedup, "way": SIBLING}
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
        found = self._once(f"planned-{_name(runtime)}", words, partial(self._find_plans, runtime))
        return [Way.model_validate(one) for one in found["reached"]]

    def _find_plans(self, runtime: RuntimeConfig) -> dict[str, Any]:
        report = find_plans(
            self._recipe(0, evaluate=False),
            self.folder / f"planner-{_name(runtime)}",
            budgets=[Budget(speedup=speedup) for speedup in self.preset.speedups],
            runtime=runtime,
            config=self.preset.planner,
            overwrite=True,
            progress=self.progress,
        )
        reached: list[dict[str, Any]] = []
        for answer in report.answers:
            trial = report.trials[answer.chosen]
            way = Way(
                task=self.name,
                runtime=_name(runtime),
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
        target = {"task": self.name, "runtime": _name(runtime), "trials": len(report.trials)}
        return {"reached": reached, "planning": {**target, **found, "correlations": correlations}}

    def _checked_times(self, runtime: RuntimeConfig) -> dict[str, Any]:
        """Predicted against measured times of random compositions."""
        times = self._times(runtime)
        space = Compositions(plan_of(self.dense), times.predict, self._analysis)
        pool = {one.plan.model_dump_json(): one.plan for limit in _LIMITS for one in space.meeting(limit)}
        plans = random.Random(0).sample(list(pool.values()), min(self.preset.checked_plans, len(pool)))
        shares = self._shares(runtime)(plans, what="random plans", progress=self.progress)
        known = [(plan, share) for plan, share in zip(plans, shares, strict=True) if share is not None]
        errors = prediction_errors(times, [plan for plan, _ in known], [share for _, share in known])
        target = {"task": self.name, "runtime": _name(runtime)}
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
        names = [f"planned-{_name(runtime)}-*.json" for runtime in self.preset.runtimes]
        return [read_json(path)["planning"] for name in names for path in sorted(self.folder.glob(name))]

    def check_times(self) -> list[dict[str, Any]]:
        """How far predicted times of random plans are off, in every runtime that is to be checked."""
        if not self.preset.checked_plans:
            return []
        words = [self._weights, self.preset.checked_plans]
        return [
            self._once(f"times-{_name(one)}", [*words, one], partial(self._checked_times, one))
            for one in self.preset.checked
        ]

    def unreached(self) -> list[dict[str, Any]]:
        return [one for runtime in self.preset.runtimes for one in self._rivals(runtime)[1]]


class _Strengths:
    """Times of one rival at its strengths, measured from the one on that is expected to be just fast enough."""

    def __init__(self, plans: Sequence[ModelPlan], times: StepTimes, measure: SharesOfPlans) -> None:
        self.plans, self._measure = plans, measure
        self.expected = [times.predict(plan) for plan in plans]
        self.known: dict[int, float] = {}

    def mildest(self, limit: float) -> int | None:
        """The index of the mildest that is measured to be within the limit, the milder one beside it being not."""
        fits = [index for index, share in enumerate(self.expected) if share is None or share <= limit]
        index = fits[0] if fits else len(self.plans) - 1
        while 0 <= index < len(self.plans) and not self._is_within(index, limit):
            index += 1
        while 0 < index < len(self.plans) and self._is_within(index - 1, limit):
            index -= 1
        return index if 0 <= index < len(self.plans) else None

    def _is_within(self, index: int, limit: float) -> bool:
        if index not in self.known:
            share = self._measure([self.plans[index]])[0]
            self.known[index] = float("inf") if share is None else share
        return self.known[index] <= limit * TOLERANCE


def _name(runtime: RuntimeConfig) -> str:
    return f"{runtime.backend}-b{runtime.batch}-{runtime.precision}"


def _digest(inputs: Any) -> str:
    words = json.dumps(inputs, sort_keys=True, default=lambda one: one.model_dump(mode="json"))
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def _read_preset(name: str, overrides: Iterable[str]) -> PlannerPreset:
    if name not in PRESETS and not Path(name).is_file():
        raise ConfigError(f"unknown preset {name!r}; wanted {', '.join(PRESETS)} or a YAML file")
    shipped = resources.files("vitslim") / "assets" / f"planner_{name}.yaml"
    document = read_settings_file(str(shipped) if name in PRESETS else name, "settings such as tasks and rivals")
    return validated(PlannerPreset, with_overrides(document, overrides), f"preset {name}: ")
