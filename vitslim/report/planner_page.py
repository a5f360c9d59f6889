"""The page of a planner's decision: every trial, what it cost and how it recovered, and the plan that was chosen."""

from __future__ import annotations

from pathlib import Path

from vitslim.files import write_text
from vitslim.planner import PlanReport, Trial, rank_correlations
from vitslim.report.charts import Point, scatter
from vitslim.report.content import Card, Cell, Element, Note, Page, Section, Table, facts, pictures
from vitslim.report.numbers import ABSENT, amount, fixed, flatten, percent, times
from vitslim.report.page import render
from vitslim.report.plan_figure import plan_picture
from vitslim.report.plan_rows import plan_rows

_SURE = 0.7
"""A rank correlation from which on a figure is called a good predictor."""


def write_planner_page(report: PlanReport, path: str | Path) -> Path:
    """Write the page of what the planner found."""
    write_text(path, render_planner_page(report))
    return Path(path)


def render_planner_page(report: PlanReport) -> str:
    """The whole page as text."""
    chosen = report.trials[report.chosen]
    sections = [
        Section("trials", "Trials", "Every plan that was trained for a short while", _trials(report)),
        Section("plan", "Plan", "The chosen plan, step by step", _plan(chosen)),
        Section("predictors", "Predictors", "What foretold recovery", _predictors(report)),
        Section("machine", "Machine", "Where it was measured", facts("Machine.", flatten(report.environment))),
    ]
    cards = [
        Card("budget", _budget(report), [f"{report.limit:.0%} of the dense model's {report.budget.measure}"]),
        Card("chosen", _speed(chosen), [chosen.name], "good"),
        Card("tried", str(len(report.trials)), [f"of {report.compositions} that fit on paper"]),
    ]
    lead = f"{report.model} on {report.data}: {report.recovery_steps} steps of short trainings in all."
    return render(Page("plan", f"A plan for {report.model}", lead, sections, cards))


def _budget(report: PlanReport) -> str:
    ((name, value),) = report.budget.model_dump(exclude_none=True).items()
    units = {"speedup": "x", "latency_ms": " ms", "macs": " GMAC", "params": " M"}
    return f"{value:g}{units[name]}"


def _speed(trial: Trial) -> str:
    return times(1.0 / (trial.measured or trial.predicted))


def _trials(report: PlanReport) -> list[Element]:
    points = [
        Point(
            one.name,
            1.0 / (one.measured or one.predicted),
            _after(one),
            "pair" if index == report.chosen else "method",
        )
        for index, one in enumerate(report.trials)
    ]
    measured = report.budget.measure == "time"
    across = f"speed in {report.runtime.backend}" if measured and report.runtime else f"fewer {report.budget.measure}"
    title = "divergence from the dense model after the last short training"
    picture = scatter(title, points, f"{across}, dense 1", "KL, nats; lower is better")
    header = [
        "Plan",
        "Speed" if measured else "Saving",
        "Foreseen",
        "MACs",
        "Parameters",
        "KL at start",
        "KL after",
        "Loss after",
        "Steps",
    ]
    rows = [_row(one, chosen=index == report.chosen) for index, one in enumerate(report.trials)]
    note = "KL is the divergence of the classes from the dense model's, in nats, on images that no start was fitted to."
    return [
        *pictures(picture, columns="one"),
        Table("All trials, the least damaged at the start first.", header, rows, note=note),
    ]


def _row(trial: Trial, *, chosen: bool) -> list[str | Cell]:
    last = trial.rungs[-1] if trial.rungs else None
    return [
        Cell(trial.name, "good" if chosen else None, "chosen" if chosen else ""),
        _speed(trial),
        times(1.0 / trial.predicted),
        amount(trial.macs, "MAC"),
        amount(trial.parameters),
        fixed(trial.damage.kl, 3),
        ABSENT if last is None else fixed(last.damage.kl, 3),
        ABSENT if last is None or last.damage.loss is None else fixed(last.damage.loss, 3),
        "0" if last is None else str(last.steps),
    ]


def _after(trial: Trial) -> float:
    return (trial.rungs[-1].damage if trial.rungs else trial.damage).kl


def _plan(trial: Trial) -> list[Element]:
    rows = plan_rows(trial.plan)
    return [] if rows is None else [Note(trial.name), *pictures(plan_picture(rows), columns="one")]


def _predictors(report: PlanReport) -> list[Element]:
    found = rank_correlations(report.trials)
    if not found:
        return [Note("Too few plans were trained to tell.", "absent")]
    rows = [
        [name, Cell(fixed(value), "good" if value >= _SURE else None)]
        for name, value in sorted(found.items(), key=lambda item: -item[1])
    ]
    error = report.prediction_error
    timing = [] if error is None else [Note(f"Predicted times were off by {percent(error, 1)} in the median.")]
    note = (
        "Spearman's rank correlation with the KL after the first short training, over all trials: 1 is the same order."
    )
    return [Table("Rank correlations.", ("Figure before training", "ρ"), rows, note=note), *timing]
