"""The page of a planner's decision: every trial, the chosen plans, and why they were chosen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitslim.files import write_text
from vitslim.planner.predictors import rank_correlations
from vitslim.planner.result import Answer, PlanReport, Trial
from vitslim.report.content import Card, Cell, Downloads, Element, Note, Page, Section, facts, pictures
from vitslim.report.numbers import fixed, flatten, percent, points, times, whole
from vitslim.report.page import render
from vitslim.report.planner_data import GAINS, Trials, budget_words, downloads, runtime_words
from vitslim.report.planner_figures import blocks_picture, budgets_picture, outlook_picture, trials_picture
from vitslim.report.planner_tables import (
    blocks_table,
    budgets_table,
    outlook_table,
    prediction_words,
    predictors_table,
    trials_table,
)

_HALF_PAGE = 6.5  # inches of a picture whose letters are legible in half of a page
_KL = (
    "KL is how far the class probabilities of a plan are from those of the dense model (Kullback–Leibler divergence, "
    "in nats): 0 is the same, less is better. It is the mean over images that nothing was fitted to or trained on."
)


def write_planner_page(report: PlanReport, path: str | Path) -> Path:
    """Write the page of what the planner found."""
    write_text(path, render_planner_page(report))
    return Path(path)


def render_planner_page(report: PlanReport) -> str:
    """The whole page as text."""
    trials = Trials(report)
    every = [*report.answers, *(one for one in report.front if one not in report.answers)]
    answers = [
        Section(
            f"budget-{place}", budget_words(one.budget), f"Budget: {budget_words(one.budget)}", _answer(trials, one)
        )
        for place, one in enumerate(report.answers, start=1)
    ]
    parts = [
        Section("budgets", "All budgets", "What each budget buys", _budgets(trials, every)),
        *answers,
        Section("outlook", "Outlook", "What more or less budget would buy", _outlook(report)),
        Section("predictors", "Predictors", "What foretold recovery", _predictors(report.trials)),
        Section("measurement", "Measurement", "How it was measured, and how long it took", _measurement(report)),
        Section("downloads", "Downloads", "The plans and all data", [Downloads(downloads(report))]),
    ]
    heading = f"A plan for {report.model}" if len(answers) == 1 else f"Plans for {report.model}"
    sections = [one for one in parts if one.elements]
    return render(Page("plan", heading, _lead(report), sections, _cards(trials), report.cautions))


def _lead(report: PlanReport) -> str:
    trained = sum(bool(one.rungs) for one in report.trials)
    tried = f"{_plans(len(report.trials))} tried on `{report.data}`"
    steps = f"{trained} of them trained for a short while ({whole(report.recovery_steps)} steps in all)"
    where = f"; times are of {runtime_words(report)}" if report.runtime else ""
    return f"{tried}, {steps if trained else 'none trained: accuracies are those before training'}{where}."


def _plans(count: int) -> str:
    return f"{whole(count)} plan{'' if count == 1 else 's'}"


def _cards(trials: Trials) -> list[Card]:
    report = trials.report
    cards = [_card(trials, one) for one in report.answers]
    if report.dense_ms is not None:
        accuracy = [f"top-1 {percent(report.dense.top1, 1)}"] if trials.has_labels else ["the baseline"]
        cards.append(Card("dense model, one call", f"{fixed(report.dense_ms)} ms", accuracy))
    return cards


def _card(trials: Trials, answer: Answer) -> Card:
    trial, dense = trials.report.trials[answer.chosen], trials.report.dense.top1
    gain = times(trials.gain(answer.chosen, answer.budget.measure))
    lost = "" if dense is None or trial.last.top1 is None else f", {points(trial.last.top1 - dense)}"
    quality = f"{trials.score_name} {percent(trials.score(trial.last), 1)}{lost}"
    return Card(
        f"budget: {budget_words(answer.budget)}", gain, [GAINS[answer.budget.measure], Cell("", below=quality)], "good"
    )


def _budgets(trials: Trials, answers: Sequence[Answer]) -> list[Element]:
    """All budgets beside each other, where there are several."""
    if len(answers) < 2:
        return []
    same = [one for one in answers if one.budget.measure == answers[0].budget.measure]
    drawn = pictures(budgets_picture(trials, same), columns="one")
    return [*drawn, budgets_table(trials, answers), Note(_KL, "note")]


def _answer(trials: Trials, answer: Answer) -> list[Element]:
    report, measure = trials.report, answer.budget.measure
    trial = report.trials[answer.chosen]
    counted = f"{_plans(answer.found)} met it on paper; {_plans(len(answer.trials))} tried in earnest"
    verb = "recovered best" if any(report.trials[index].rungs for index in answer.trials) else "is damaged least"
    is_first_of_all = len(report.answers) + len(report.front) < 2
    strip = blocks_picture(f"The chosen plan, {answer.chosen + 1}", trial)
    is_long = strip is not None and strip.width > _HALF_PAGE
    blocks = [blocks_table(trial.blocks, measure)] if trial.blocks else []
    return [
        Note(f"{counted}. Plan {answer.chosen + 1} {verb}: {trial.name}."),
        *pictures(trials_picture(trials, answer), strip, columns="one" if is_long else "two"),
        *([Note(_KL, "note")] if is_first_of_all else []),
        trials_table(trials, answer),
        *blocks,
    ]


def _outlook(report: PlanReport) -> list[Element]:
    if not report.outlook:
        return []
    measure = report.answers[0].budget.measure
    said = (
        "The KL that the best choice for each block would cause at other budgets, summed over the blocks. It is the KL "
        "before training, which takes much of it away: what matters is where the curve turns steep, not its height."
    )
    drawn = pictures(outlook_picture(report), columns="one")
    return [Note(said), *drawn, outlook_table(report.outlook, measure)]


def _predictors(trials: Sequence[Trial]) -> list[Element]:
    found = rank_correlations(trials)
    if not found:
        return [Note("Fewer than three plans were trained, which is too few to tell.", "absent")]
    return [predictors_table(found, sum(bool(one.rungs) for one in trials))]


def _measurement(report: PlanReport) -> list[Element]:
    error = report.prediction_error
    timing = [] if error is None else [Note(prediction_words(report.trials, error))]
    stages = {name: _duration(seconds) for name, seconds in report.seconds.items()}
    if len(stages) > 1:
        stages["all"] = _duration(sum(report.seconds.values()))
    runtime = {} if report.runtime is None else _settings(report.runtime.model_dump(mode="json"))
    return [
        *timing,
        *facts("How long each stage took.", stages),
        *facts("Runtime.", runtime),
        *facts("Machine.", _settings(report.environment)),
        *facts("Settings of the planner", _settings(report.config.model_dump(mode="json")), "folded"),
    ]


def _settings(document: dict[str, Any]) -> dict[str, str]:
    return {name.replace("_", " "): value for name, value in flatten(document).items()}


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
