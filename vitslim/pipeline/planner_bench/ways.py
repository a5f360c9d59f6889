"""What is fast enough at each target: the rivals, each at its mildest strength, smaller models, the planner's plans."""

from __future__ import annotations

from functools import partial
from typing import Any

from vitslim.bench import environment
from vitslim.errors import ConfigError
from vitslim.files import read_json
from vitslim.opening import open_model
from vitslim.pipeline.planner_bench.preset import Rival
from vitslim.pipeline.planner_bench.strengths import Strengths
from vitslim.pipeline.planner_bench.subject import Subject
from vitslim.pipeline.planning import TOLERANCE
from vitslim.pipeline.planning import plan as find_plans
from vitslim.planner import Budget, RuntimeConfig, measure_models, rank_correlations
from vitslim.planner.comparison import PLANNER, SIBLING, Way
from vitslim.plans import plan_json
from vitslim.progress import Progress
from vitslim.train import WarmStartConfig


class Ways:
    """Everything that competes for a task; what is measured once lies in a JSON file named after all it depends on."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.task, self.preset = subject, subject.task, subject.preset

    def all(self, *, new: bool) -> list[Way]:
        """Everything that is fast enough at a target, the planner's plan last; where ``new`` is false what is known."""
        runtimes = [one for one in self.preset.runtimes if new or self.is_planned(one)]
        return [way for runtime in runtimes for way in [*self._rivals(runtime)[0], *self._planned(runtime)]]

    def unreached(self) -> list[dict[str, Any]]:
        """What is not fast enough at any strength, as far as it is known."""
        planned = [one for one in self.preset.runtimes if self.is_planned(one)]
        found = [one for runtime in planned for one in self._rivals(runtime)[1]]
        return found + [one for plans in self._plannings() for one in plans.get("unreached", [])]

    def plannings(self) -> list[dict[str, Any]]:
        """How each search went."""
        return [plans["planning"] for plans in self._plannings()]

    def _plannings(self) -> list[dict[str, Any]]:
        found = [self.subject.found(f"planned-{runtime_name(runtime)}") for runtime in self.preset.runtimes]
        return [read_json(path) for paths in found for path in paths[-1:]]

    def is_planned(self, runtime: RuntimeConfig) -> bool:
        return bool(self.subject.found(f"planned-{runtime_name(runtime)}"))

    def _rivals(self, runtime: RuntimeConfig) -> tuple[list[Way], list[dict[str, Any]]]:
        """The rivals that reach a target in a runtime, the mildest of each, and those that do not."""
        words = [self.subject.weights, self.preset.speedups, runtime]
        found: list[dict[str, Any]] = []
        for name, rival in self.preset.rivals.items():
            work = partial(self._measured_rival, name, rival, runtime)
            found.append(self.subject.once(f"rivals/{name}-{runtime_name(runtime)}", [*words, rival], work))
        if self.task.siblings:
            name, work = f"rivals/{SIBLING}-{runtime_name(runtime)}", partial(self._measured_siblings, runtime)
            found.append(self.subject.once(name, [*words, self.task.siblings], work))
        reached = [Way.model_validate(one) for part in found for one in part["reached"]]
        return reached, [one for part in found for one in part["unreached"]]

    def _measured_rival(self, name: str, rival: Rival, runtime: RuntimeConfig) -> dict[str, Any]:
        reached: list[dict[str, Any]] = []
        unreached: list[dict[str, Any]] = []
        steps = [(entries, plan) for entries in rival.entries() if (plan := self.subject.plan(entries)) is not None]
        predict, measure = self.subject.times(runtime).predict, self.subject.shares(runtime)
        shares = Strengths([plan for _, plan in steps], predict, measure)
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
        self.subject.progress(Progress(f"{self.subject.name}: times of {name}", 1, 1, "done"))
        return {"reached": reached, "unreached": unreached}

    def _target(self, runtime: RuntimeConfig, speedup: float, way: str) -> dict[str, Any]:
        return {"task": self.subject.name, "runtime": runtime_name(runtime), "speedup": speedup, "way": way}

    def _measured_siblings(self, runtime: RuntimeConfig) -> dict[str, Any]:
        folders = {str(index): self.subject.from_nothing(one) for index, one in enumerate(self.task.siblings)}
        models = {index: open_model(folder).eval() for index, folder in folders.items()}
        shares = measure_models({"dense": self.subject.dense, **models}, runtime)[0]
        reached: list[dict[str, Any]] = []
        unreached: list[dict[str, Any]] = []
        for speedup in self.preset.speedups:
            target = self._target(runtime, speedup, SIBLING)
            fast = [index for index, share in shares.items() if share <= TOLERANCE / speedup]
            if not fast:
                unreached.append({**target, "best": 1.0 / min(shares.values(), default=float("inf"))})
                continue
            first = min(fast, key=int)
            way = Way(**target, entries=[], plan=None, sibling=self.task.siblings[int(first)], share=shares[first])
            reached.append(way.model_dump(mode="json"))
        return {"reached": reached, "unreached": unreached}

    def _planned(self, runtime: RuntimeConfig) -> list[Way]:
        """The planner's answers in a runtime, one for each target that it reaches."""
        words = [self.subject.weights, self.preset.speedups, self.preset.planner, self.task.distill, runtime]
        found = self.subject.once(f"planned-{runtime_name(runtime)}", words, partial(self._find_plans, runtime))
        return [Way.model_validate(one) for one in found["reached"]]

    def _find_plans(self, runtime: RuntimeConfig) -> dict[str, Any]:
        asked, unreached = sorted(self.preset.speedups), list[dict[str, Any]]()
        while True:
            try:
                report = find_plans(
                    self.subject.recipe(0, evaluate=False),
                    self.subject.folder / f"planner-{runtime_name(runtime)}",
                    budgets=[Budget(speedup=speedup) for speedup in asked],
                    runtime=runtime,
                    config=self.preset.planner,
                    damages=self.subject.folder,
                    overwrite=True,
                    progress=self.subject.progress,
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
                task=self.subject.name,
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
        target = {"task": self.subject.name, "runtime": runtime_name(runtime), "trials": len(report.trials)}
        machine = {"cpu": environment()["cpu"]}
        return {
            "reached": reached,
            "unreached": unreached,
            "planning": {**target, **machine, **found, "correlations": correlations},
        }


def runtime_name(runtime: RuntimeConfig) -> str:
    """As files and tables call it: ``ort-b1-fp32``."""
    return f"{runtime.backend}-b{runtime.batch}-{runtime.precision}"
