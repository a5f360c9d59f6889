"""The pictures of the planner's page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from vitslim.planner.budget import Measure
from vitslim.planner.result import Answer, PlanReport, Trial
from vitslim.report.charts import Point, PointKind, draw_front, scatter
from vitslim.report.drawing import ACCENT, BAD, FIRST, Picture, draw
from vitslim.report.numbers import times
from vitslim.report.plan_figure import Lane, plan_picture
from vitslim.report.plan_rows import plan_rows
from vitslim.report.planner_data import GAINS, Trials, across, budget_words, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def trials_picture(trials: Trials, answer: Answer) -> Picture:
    """The trials of one budget: what each takes against how well it recovered."""
    measure = answer.budget.measure
    points = [_point(trials, index, measure, is_named=True) for index in answer.trials]
    title = f"Every trial for “{budget_words(answer.budget)}”"
    note = "At the top right is best. Numbers are those of the table below."
    return _picture(trials, title, points, [answer], note, limit=1.0 / answer.limit)


def budgets_picture(trials: Trials, answers: Sequence[Answer]) -> Picture:
    """All trials of all budgets, of which the chosen ones are named."""
    chosen = {one.chosen for one in answers}
    every = dict.fromkeys(index for one in answers for index in one.trials)
    points = [_point(trials, index, answers[0].budget.measure, is_named=index in chosen) for index in every]
    note = "At the top right is best. Only the chosen plans are numbered."
    return _picture(trials, "Every trial of every budget", points, answers, note)


def _picture(
    trials: Trials,
    title: str,
    points: Sequence[Point],
    answers: Sequence[Answer],
    note: str,
    *,
    limit: float | None = None,
) -> Picture:
    dense = Point("", 1.0, 100 * trials.score(trials.report.dense), "dense")
    measure = answers[0].budget.measure
    chosen = [_point(trials, index, measure, is_named=False) for index in dict.fromkeys(one.chosen for one in answers)]

    def decorate(axes: Axes) -> None:
        places = [one.x for one in chosen], [one.y for one in chosen]
        axes.plot(
            *places, "o", markersize=13, markerfacecolor="none", color=ACCENT, markeredgewidth=1.6, label="chosen"
        )
        draw_front(axes, [dense, *points], "Pareto front")
        if limit is not None:
            axes.axvline(limit, color=BAD, linewidth=0.9, linestyle=":", zorder=0, label=f"budget {times(limit)}")

    up = f"{trials.score_name}, % of images"
    return scatter(title, [dense, *points], across(trials.report, measure), up, note=note, decorate=decorate)


def _point(trials: Trials, index: int, measure: Measure, *, is_named: bool) -> Point:
    trial = trials.report.trials[index]
    name = short_name(index, trial) if is_named else ""
    return Point(name, trials.gain(index, measure), 100 * trials.score(trial.last), cast("PointKind", trial.kind))


def blocks_picture(title: str, trial: Trial) -> Picture | None:
    """The plan as a strip, with what each block costs and what its change does alone."""
    rows = plan_rows(trial.plan)
    if rows is None:
        return None
    costs = Lane("cost, %", {one.block: 100 * one.cost for one in trial.blocks}, 1)
    alone = Lane("KL alone", {one.block: one.alone for one in trial.blocks}, 4)
    lanes = [lane for lane in (costs, alone) if any(value is not None for value in lane.values.values())]
    return plan_picture(rows, lanes, title=title)


def outlook_picture(report: PlanReport) -> Picture | None:
    """The divergence that is expected at other budgets, and where the asked ones are."""
    if len(report.outlook) < 2:
        return None
    measure = report.answers[0].budget.measure
    found = sorted((1.0 / one.limit, one.expected_kl) for one in report.outlook)
    asked = [1.0 / one.limit for one in report.answers if one.budget.measure == measure]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        axes.plot(*zip(*found, strict=True), "o-", color=FIRST, linewidth=1.5, markersize=4, clip_on=False)
        for number, gain in enumerate(asked):
            label = None if number else "budgets asked for" if len(asked) > 1 else "budget asked for"
            axes.axvline(gain, color=BAD, linewidth=0.9, linestyle=":", zorder=0, label=label)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"times {GAINS[measure]}")
        axes.set_ylabel("expected KL, nats")
        axes.grid()
        figure.legend(loc="outside upper left")

    words = "; ".join(f"{times(gain)}: {kl:.3g} nats" for gain, kl in found)
    title = "Expected KL before training at other budgets"
    return draw(title, paint, height=2.8, description=f"{title}: {words}")
