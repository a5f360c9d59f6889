"""From budgets to plans in a folder; what is interrupted goes on where it was."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

from vitslim.analysis import AnalysisReport, analyze_once
from vitslim.bench import environment
from vitslim.errors import ConfigError
from vitslim.files import write_json
from vitslim.pipeline.devices import on_device
from vitslim.pipeline.folder import RunFolder
from vitslim.pipeline.inputs import analysis_images, file_state, open_source
from vitslim.pipeline.planning.images import open_meter
from vitslim.pipeline.planning.outline import check_budgets, resolved
from vitslim.pipeline.planning.recovery import Recovery, score
from vitslim.planner import (
    LADDER,
    Answer,
    Budget,
    Candidate,
    Changes,
    Compositions,
    DamageMeter,
    Outlook,
    PlannerConfig,
    PlanReport,
    PlanSearch,
    Price,
    Rates,
    RuntimeConfig,
    SharesOfPlans,
    StepTimes,
    Trial,
    best_steps,
    figures_of,
    measure_changes,
    measure_rates,
    of_all_kinds,
    probes_once,
)
from vitslim.planner.reasons import reasons
from vitslim.planner.times import times_folder
from vitslim.plans import ModelPlan, cost, plan_json
from vitslim.progress import ProgressCallback, silent
from vitslim.recipe import AnalyzeSection, Recipe
from vitslim.report.planner_page import write_planner_page
from vitslim.trunk import is_converted, plan_of

PLANNER_FILE, PLAN_FILE = "planner.json", "plan.json"
_MARGIN = 0.98
"""Of the limit that predictions aim at, for they err by some per cent."""
TOLERANCE = 1.02
"""Of the limit that a measured time may take: what rounds on a shared machine differ by."""
_LEAST = (0.95, 0.0, 0.0)
"""Of the limit: plans that take less as measured, or too long, are solved for again; later those that take too long."""
_OUTLOOK = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.33, 0.25)
"""Limits that the report has a word on."""
_LEVELS = (0.9, 0.7, 0.5, 0.35, 0.25, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
"""Limits that are tried to say how far anything goes."""


def plan(
    recipe: Recipe,
    out: str | Path,
    *,
    budgets: Sequence[Budget],
    runtime: RuntimeConfig,
    config: PlannerConfig | None = None,
    damages: Path | None = None,
    overwrite: bool = False,
    progress: ProgressCallback = silent,
) -> PlanReport:
    """Find the plan of a model that recovers best within each budget; see ``vitslim.planner``.

    Args:
        recipe: model, images, and the distillation that the student is going to have; its methods are not used.
        out: takes plan.json (of the first budget), one such file more for each budget where there are several,
            planner.json, report.html and the short trainings.
        damages: folder of the file that keeps measured damages, for searches in several runtimes; ``None`` for ``out``.

    Raises:
        ConfigError: no budget, no or too few images, a converted model, or a budget that nothing reaches.
        CheckFailedError: the runtime does not run the model.
    """
    config = config or PlannerConfig()
    check_budgets(recipe, budgets)
    folder = RunFolder(out)
    text = resolved(recipe, budgets, runtime, config)
    folder.check(text, overwrite=overwrite)
    dense = on_device(open_source(recipe), recipe.device)
    if is_converted(dense):
        raise ConfigError(f"{recipe.model.name} is converted already; plan for the dense model that it came from")
    folder.begin(text, overwrite=overwrite)
    with folder:
        if folder.enter("plan", [text, file_state(recipe.model)], PLANNER_FILE, PLAN_FILE):
            kept = damages or folder.path
            found = _Planning(recipe, folder.path, kept, dense.eval(), runtime, config, progress).run(budgets)
            write_json(folder.path / PLANNER_FILE, found.model_dump(mode="json"))
            for answer in found.answers if len(found.answers) > 1 else ():
                name = answer.budget.describe().removeprefix("--").replace(" ", "-")
                write_json(folder.path / f"plan-{name}.json", found.trials[answer.chosen].plan)
            write_json(folder.path / PLAN_FILE, found.plan)
            folder.finish("plan")
        report = PlanReport.model_validate(folder.read(PLANNER_FILE))
        write_planner_page(report, folder.path / "report.html")
    return report


class _Planning:
    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        damages: Path,
        dense: nn.Module,
        runtime: RuntimeConfig,
        config: PlannerConfig,
        progress: ProgressCallback,
    ) -> None:
        self.recipe, self.folder, self.damages, self.model = recipe, folder, damages, dense
        self.runtime, self.config, self.progress = runtime, config, progress
        self.dense = plan_of(dense)
        self.trials: list[Trial] = []
        self.seconds: dict[str, float] = {}
        self._prices: dict[str, Price] = {}
        self._measured: dict[str, Changes] = {}
        self._fewer: dict[str, list[Rates]] = {}
        self._reached: dict[str, tuple[Compositions, list[Candidate], float, float]] = {}

    def run(self, budgets: Sequence[Budget]) -> PlanReport:
        with self._timed("analysis"):
            analysis = self._analysis
        is_of_drop = budgets[0].max_drop is not None
        for budget in () if is_of_drop else budgets:
            self._compositions(budget, analysis)  # what is out of reach is refused before anything long begins
        front = self._ladder(analysis) if is_of_drop else [self._answer(one, analysis) for one in budgets]
        answers = [self._fastest(budgets[0], front)] if is_of_drop else front
        errors = [abs(one.predicted / one.measured - 1.0) for one in self.trials if one.measured is not None]
        data = self.recipe.data
        is_timed = any(one.measure == "time" for one in budgets)
        return PlanReport(
            model=self.recipe.model.name,
            data="" if data is None else data.source,
            runtime=self.runtime if is_timed else None,
            config=self.config,
            dense_ms=self._times[1] if is_timed else None,
            images=self._meter.images,
            dense=self._meter.dense,
            prediction_error=median(errors) if errors else None,
            trials=self.trials,
            answers=answers,
            front=front if is_of_drop else [],
            outlook=self._outlook(front[0].budget),
            recovery_steps=self._recovery.steps,
            seconds=self.seconds,
            environment=environment(),
        )

    def _ladder(self, analysis: AnalysisReport) -> list[Answer]:
        """Answers for one speedup after the other, up to the first that nothing reaches."""
        found: list[Answer] = []
        for speedup in LADDER:
            try:
                found.append(self._answer(Budget(speedup=speedup), analysis))
            except ConfigError:
                if not found:
                    raise
                break
        return found

    def _answer(self, budget: Budget, analysis: AnalysisReport) -> Answer:
        space, compositions, limit, aim = self._compositions(budget, analysis)
        with self._timed("damage"):
            changes = self._changes(budget)
            search = PlanSearch(space, changes, self._rates(budget), self._meter, self.config, self.progress)
            candidates, found = search.candidates(compositions, aim)
        with self._timed("times of trials"):
            trials = self._trials(search, candidates, limit, is_timed=budget.measure == "time")
        with self._timed("short trainings"):
            named = _told_apart(
                self.trials, [self._trial(one, share, analysis, space.price, changes) for one, share in trials]
            )
            trained = self._recovery.train(named)
        first = len(self.trials)
        self.trials += trained
        indices = range(first, len(self.trials))
        chosen = max(indices, key=lambda index: (len(self.trials[index].rungs), -score(self.trials[index])))
        return Answer(budget=budget, limit=limit, found=found, trials=list(indices), chosen=chosen)

    def _compositions(
        self, budget: Budget, analysis: AnalysisReport
    ) -> tuple[Compositions, list[Candidate], float, float]:
        """Those that meet a budget's limit, with their space, the limit, and the share that predictions aim at."""
        key = budget.describe()
        if key not in self._reached:
            is_timed = budget.measure == "time"
            limit = budget.limit(self.dense, self._times[1] if is_timed else None, self.runtime.precision)
            aim = limit * _MARGIN if is_timed else limit
            space = Compositions(self.dense, self._price(budget), analysis)
            compositions = space.meeting(aim)
            if not compositions:
                raise ConfigError(self._out_of_reach(budget, limit, space))
            self._reached[key] = (space, compositions, limit, aim)
        return self._reached[key]

    def _fastest(self, budget: Budget, front: Sequence[Answer]) -> Answer:
        """The fastest answer that loses no more than the budget allows, by the last short training of its plan."""
        dense, most = self._meter.dense, budget.max_drop
        assert most is not None
        lost: dict[int, float] = {}
        for index, answer in enumerate(front):
            last = self.trials[answer.chosen].last
            top1 = None if dense.top1 is None or last.top1 is None else dense.top1 - last.top1
            lost[index] = 100 * (1.0 - last.agreement if top1 is None else top1)
        kept = [index for index, points in lost.items() if points <= most]
        if not kept:
            mildest = min(lost, key=lambda index: lost[index])
            raise ConfigError(
                f"no plan loses {most:g} points or fewer after its short training; the least is "
                f"{lost[mildest]:.1f} points at {1 / front[mildest].limit:.2f}x; ask for less, or train longer "
                "(--recovery, --epochs)"
            )
        return front[kept[-1]].model_copy(update={"budget": budget})

    def _out_of_reach(self, budget: Budget, limit: float, space: Compositions) -> str:
        """How far anything goes, and what would go further."""
        reached = min([one.price for level in _LEVELS for one in space.meeting(level)], default=1.0)
        has = budget.dense_has(self.dense, self._times[1] if budget.measure == "time" else None, self.runtime.precision)
        least = f"{1 / reached:.2f}x" if budget.speedup else f"{reached * has[0]:.4g} {has[1]}, {1 / reached:.2f}x"
        elsewhere = ", plan for another batch size or target" if budget.measure == "time" else ""
        return (
            f"{budget.describe()}: no composition of methods is expected to get there; the furthest that was found is "
            f"{least}; stay within that{elsewhere}, or start from a smaller model"
        )

    @contextmanager
    def _timed(self, stage: str) -> Any:
        began = time.monotonic()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.monotonic() - began

    @cached_property
    def _analysis(self) -> AnalysisReport:
        assert self.recipe.data is not None
        section = self.recipe.analyze or AnalyzeSection.model_validate({})
        return analyze_once(
            self.model,
            analysis_images(self.recipe, self.recipe.data, section, self.model),
            images=section.images,
            replacement_images=section.replacement_images,
            progress=self.progress,
        )

    @cached_property
    def _times(self) -> tuple[StepTimes, float]:
        """What predicts times, and the dense latency in ms."""
        with self._timed("times of steps"):
            probes = probes_once(self.model, self.runtime, times_folder(), progress=self.progress)
        return StepTimes(self.dense, probes), probes.dense_ms

    def _price(self, budget: Budget) -> Price:
        """What a plan takes, as a share of the dense model's."""
        if budget.measure not in self._prices:
            self._prices[budget.measure] = _remembered(self._unremembered(budget))
        return self._prices[budget.measure]

    def _unremembered(self, budget: Budget) -> Price:
        whole = cost(self.dense)
        if budget.measure == "time":
            return self._times[0].predict
        if budget.measure == "macs":
            return lambda plan: cost(plan).macs / whole.macs
        return lambda plan: cost(plan).parameters / whole.parameters

    def _changes(self, budget: Budget) -> Changes:
        """What single changes do alone that take less."""
        if budget.measure not in self._measured:
            found = measure_changes(self.dense, self._price(budget), self._meter, self.progress)
            self._measured[budget.measure] = found
        return self._measured[budget.measure]

    def _rates(self, budget: Budget) -> list[Rates]:
        """What fewer tokens do alone that take less."""
        if budget.measure not in self._fewer:
            found = measure_rates(self.dense, self._price(budget), self._meter, self.progress)
            self._fewer[budget.measure] = found
        return self._fewer[budget.measure]

    @cached_property
    def _meter(self) -> DamageMeter:
        return open_meter(self.recipe, self.model, self.config, self.damages)

    def _trials(
        self, search: PlanSearch, candidates: Sequence[Candidate], limit: float, *, is_timed: bool
    ) -> list[tuple[Candidate, float | None]]:
        """The plans to train: of different kinds, and within the budget as measured."""
        chosen = of_all_kinds(candidates, 2 * self.config.trials if is_timed else self.config.trials)
        if not is_timed:
            return [(one, None) for one in chosen]
        pairs: list[tuple[Candidate, float | None]] = []
        missed = list[tuple[Candidate, float]]()
        for least in _LEAST:
            # Predictions err in the same way for plans that are alike.
            chosen = [search.aimed(one, limit * one.price / share) for one, share in missed] if pairs else chosen
            measured = list(zip(chosen, self._measured_shares(chosen), strict=True))
            missed = [(one, s) for one, s in measured if s is not None and not least * limit <= s <= TOLERANCE * limit]
            pairs += measured
        within = {one.plan.model_dump_json(): (one, s) for one, s in pairs if s is not None and s <= limit * TOLERANCE}
        if not within:
            best = min((share for _, share in pairs if share is not None), default=None)
            reached = "none could be measured" if best is None else f"the fastest reached {1 / best:.2f}x"
            raise ConfigError(
                f"no plan takes {limit:.0%} of the dense model's time or less as measured: {reached}; measure on a "
                f"quiet machine (what was measured is kept in {times_folder()}; without it all is measured again), or "
                "ask for less"
            )
        kept = {
            one.plan.model_dump_json() for one in of_all_kinds([one for one, _ in within.values()], self.config.trials)
        }
        return sorted((pair for key, pair in within.items() if key in kept), key=lambda pair: pair[0].kl)

    def _measured_shares(self, candidates: Sequence[Candidate]) -> list[float | None]:
        return self._shares([one.plan for one in candidates], what="trials", progress=self.progress)

    @cached_property
    def _shares(self) -> SharesOfPlans:
        return SharesOfPlans(self.model, self.runtime, times_folder())

    def _trial(
        self, one: Candidate, share: float | None, analysis: AnalysisReport, price: Price, changes: Changes
    ) -> Trial:
        costs = cost(one.plan)
        assert one.damage is not None
        return Trial(
            name=one.name,
            kind="improved" if one.is_improved else one.kind,
            entries=[dict(entry) for entry in one.entries],
            plan=plan_json(one.plan),
            macs=costs.macs,
            parameters=costs.parameters,
            predicted=one.price,
            measured=share,
            expected_kl=one.expected,
            damage=one.damage,
            figures=figures_of(one.plan, analysis),
            blocks=reasons(one.plan, self.dense, changes, price),
        )

    @cached_property
    def _recovery(self) -> Recovery:
        return Recovery(self.recipe, self.model, self.config, self._meter, self.folder, self.progress)

    def _outlook(self, budget: Budget) -> list[Outlook]:
        solved = best_steps(self.dense, self._changes(budget), self._price(budget), _OUTLOOK)
        found = [Outlook(limit=limit, expected_kl=one[1]) for limit, one in zip(_OUTLOOK, solved, strict=True) if one]
        return sorted(found, key=lambda one: one.limit)


def _told_apart(known: Sequence[Trial], trials: Sequence[Trial]) -> list[Trial]:
    """The trials; other plans of the same name get a number."""
    named = {one.name: one.plan for one in known}
    found: list[Trial] = []
    for trial in trials:
        names = itertools.chain([trial.name], (f"{trial.name} ({number})" for number in itertools.count(2)))
        name = next(name for name in names if named.get(name, trial.plan) == trial.plan)
        named[name] = trial.plan
        found.append(trial.model_copy(update={"name": name}))
    return found


def _remembered(price: Callable[[ModelPlan], float | None]) -> Price:
    """The same, each plan computed once."""
    known: dict[str, float | None] = {}

    def remembered(plan: ModelPlan) -> float | None:
        key = plan.model_dump_json()
        if key not in known:
            known[key] = price(plan)
        return known[key]

    return remembered
