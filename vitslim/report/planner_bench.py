"""The benchmark of the planner as tables and a picture: what each way keeps of the accuracy at each speedup."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from vitslim.bench.tables import as_markdown, as_text
from vitslim.planner.comparison import PLANNER, PlannerBenchReport, Student
from vitslim.report.charts import Point, draw_front, scatter
from vitslim.report.drawing import Picture
from vitslim.report.numbers import ABSENT

_NAMED = 3
"""Of what is left, the parts that are named."""
_FORETOLD = (
    "What foretold the error after training (Spearman's rank correlation over all students; 1 is the same order):"
)


def bench_tables(report: PlannerBenchReport, *, nearest: int | None = None) -> dict[str, list[list[str]]]:
    """For every task and runtime what each way reaches, the first line of each table its header.

    A cell has the mean top-1 over the seeds in per cent, half the range that they span, and the measured speedup; the
    best one of a column is between asterisks.
    """
    return {
        f"{task}, {runtime}": _table(report, task, runtime, nearest)
        for task, runtime in dict.fromkeys((one.task, one.runtime) for one in report.students)
    }


def bench_lines(report: PlannerBenchReport) -> list[str]:
    """The tables and what has to be said of them, for a terminal."""
    tables = [f"{title}\n{as_text(cells)}\n" for title, cells in bench_tables(report).items()]
    foretold = [f"{_FORETOLD}\n{as_text(cells)}\n" for cells in foretold_table(report)]
    return [*tables, *bench_notes(report), *foretold]


def bench_markdown(report: PlannerBenchReport, *, nearest: int | None = None) -> str:
    """The same for a page; ``nearest``: so many of the most accurate at each speedup, beside the planner."""
    found = bench_tables(report, nearest=nearest)
    tables = [f"{_in_words(title)}:\n\n{as_markdown(cells)}" for title, cells in found.items()]
    foretold = [] if nearest else [f"{_FORETOLD}\n\n{as_markdown(cells)}" for cells in foretold_table(report)]
    return "\n\n".join([*tables, *bench_notes(report), *foretold])


def foretold_table(report: PlannerBenchReport) -> list[list[list[str]]]:
    """One table of rank correlations, a column for each task; none before any is known."""
    tasks = [task for task, found in report.foretold.items() if found]
    names = dict.fromkeys(name for task in tasks for name in report.foretold[task])
    rows = [[name, *(_rho(report.foretold[task].get(name)) for task in tasks)] for name in names]
    return [[["figure before training", *tasks], *rows]] if rows else []


def _rho(value: float | None) -> str:
    return ABSENT if value is None else f"{value:+.2f}"


def bench_notes(report: PlannerBenchReport) -> list[str]:
    """Budgets, dense accuracy, what the searches took, how good predicted times were, what is left."""
    notes: list[str] = []
    for task, images in report.images.items():
        steps = report.settings["tasks"][task]["distill"]["steps"]
        dense = report.finetuned.get(task, {})
        top1 = f"; the dense model with the same budget has {_accuracy(dense)} %" if dense else ""
        notes.append(f"{task}: {steps} steps of distillation for every row, {images} held-out images{top1}.")
    for one in report.planning:
        seconds, error, machine = one["seconds"], one["prediction_error"], one.get("cpu")
        trainings, times = seconds.get("short trainings", 0.0), seconds.get("times of steps", 0.0)
        notes.append(
            f"The search for all speedups on {one['task']} in {one['runtime']} "
            + (f"on {machine} " if machine else "")
            + f"took {sum(seconds.values()) / 60:.0f} minutes, {trainings / 60:.0f} of them for "
            f"{one['recovery_steps']} steps of short trainings"
            + (", with times of steps from an earlier search" if times < 30 else "")
            + ("." if error is None else f"; times of its trials were predicted to {100 * error:.1f} % (median).")
        )
    for one in report.times:
        notes.append(
            f"Predicted times of {len(one['errors'])} random plans on {one['task']} in {one['runtime']}: off by "
            f"{100 * one['median']:.1f} % in the median, by {100 * max(map(abs, one['errors'])):.1f} % at most."
        )
    machine = report.environment
    cpus = dict.fromkeys([*(one["cpu"] for one in report.planning if "cpu" in one), machine["cpu"]])
    measured_on = " and ".join(cpus) + (", each table on the one that its search names" if len(cpus) > 1 else "")
    notes.append(
        f"± is half the range over the seeds; figures without it have one seed, with which they were "
        f"{report.settings['close']:g} or more points below the best. "
        f"{measured_on}, one thread, onnxruntime {machine['onnxruntime']}, torch {machine['torch']}."
        + (f" Speeds are ratios of {report.timed}." if report.timed else "")
    )
    if report.left:
        more = f" and {len(report.left) - _NAMED} more" if len(report.left) > _NAMED else ""
        notes.append(f"Not trained or measured yet: {'; '.join(report.left[:_NAMED])}{more}.")
    return notes


def bench_pictures(report: PlannerBenchReport) -> dict[str, Picture]:
    """A picture for every task and runtime, by a name for its file."""
    settings = dict.fromkeys((one.task, one.runtime) for one in report.students if one.top1)
    return {f"{task}_{runtime}": bench_picture(report, task, runtime) for task, runtime in settings}


def bench_picture(report: PlannerBenchReport, task: str, runtime: str) -> Picture:
    """Accuracy over measured speed: the planner's students, all others, the best of them by name, and their front.

    What lies three times as far below the highest as the planner's fastest student would press all others together; the
    best others are shown wherever they lie.
    """
    students = [one for one in report.students if (one.task, one.runtime) == (task, runtime) and one.top1 and one.share]
    others = [one for one in students if one.way != PLANNER]
    best = {one.speedup: one for one in sorted(others, key=_height)}.values()
    points = [_point(one, is_named=one not in others or one in best) for one in students]
    dense = report.finetuned.get(task, {})
    fixed = [Point("dense", 1.0, 100 * fmean(dense.values()), "dense")] if dense else []
    highest = max(point.y for point in [*fixed, *points])
    telling = [point.y for point in [*fixed, *points] if point.kind != "baseline"]
    least = min([highest - 3 * (highest - min(telling)), *map(_height, best)]) if telling else 0.0
    shown = [point for point in points if point.y >= least]
    left = len(points) - len(shown)
    return scatter(
        f"{task}, {runtime}",
        [*fixed, *shown],
        f"speed in {runtime}, dense 1",
        "held-out top-1, %",
        note=f"{left} more lie below." if left else "",
        decorate=lambda axes: draw_front(axes, [point for point in shown if point.kind == "baseline"]),
    )


def _height(one: Student) -> float:
    """Mean top-1 over the seeds, %."""
    return 100 * fmean(one.top1.values())


def _point(one: Student, *, is_named: bool) -> Point:
    values = [100 * value for value in one.top1.values()]
    speed, height = 1.0 / (one.share or 1.0), fmean(values)
    kind = "planner" if one.way == PLANNER else "baseline"
    return Point(f"{one.way} {one.speedup:g}x" if is_named else "", speed, height, kind, _half_range(values))


def _table(report: PlannerBenchReport, task: str, runtime: str, nearest: int | None) -> list[list[str]]:
    found: dict[str, dict[float, Student]] = {}
    for one in report.students:
        if (one.task, one.runtime) == (task, runtime):
            found.setdefault(one.way, {})[round(one.speedup, 6)] = one
    missed: dict[str, float] = {}
    for other in report.unreached:
        if (other["task"], other["runtime"]) == (task, runtime):
            missed[other["way"]] = max(missed.get(other["way"], 0.0), other["best"] or 0.0)
            found.setdefault(other["way"], {})
    found = found if nearest is None else _nearest(found, nearest)
    columns = sorted({speedup for row in found.values() for speedup in row})
    best = {speedup: max(_means(found, speedup).values(), default=0.0) for speedup in columns}
    rows = [["way", *(f"{speedup:g}x" for speedup in columns)]]
    for way in sorted(found, key=lambda way: (way != PLANNER, _order(found[way]))):
        cells = [_cell(found[way].get(speedup), best[speedup], missed.get(way)) for speedup in columns]
        rows.append([way, *cells])
    return rows


def _nearest(found: Mapping[str, dict[float, Student]], count: int) -> dict[str, dict[float, Student]]:
    """The planner and the most accurate others of each speedup."""
    kept = {PLANNER}
    for speedup in {speedup for row in found.values() for speedup in row}:
        top1 = _means(found, speedup)
        kept.update(sorted(top1, key=lambda way: -top1[way])[:count])
    return {way: row for way, row in found.items() if way in kept}


def _cell(one: Student | None, best: float, missed: float | None) -> str:
    if one is None:
        return ABSENT if not missed else f"at most {missed:.2f}x"
    if not one.top1:
        return "not trained yet"
    text = f"{_accuracy(one.top1)} ({1 / (one.share or 1.0):.2f}x)"
    return f"*{text}*" if fmean(one.top1.values()) >= best - 1e-9 else text


def _means(found: Mapping[str, Mapping[float, Student]], speedup: float) -> dict[str, float]:
    """Accuracy of each way that is trained for a speedup."""
    return {
        way: fmean(row[speedup].top1.values()) for way, row in found.items() if speedup in row and row[speedup].top1
    }


def _order(row: Mapping[float, Student]) -> tuple[int, float]:
    """The more speedups a way reaches the further up, then by its mean accuracy."""
    means = [fmean(one.top1.values()) for one in row.values() if one.top1]
    return -len(row), -fmean(means) if means else 0.0


def _accuracy(top1: Mapping[str, float]) -> str:
    values = [100 * value for value in top1.values()]
    return f"{fmean(values):.2f}" + (f" ± {_half_range(values):.2f}" if len(values) > 1 else "")


def _half_range(values: Sequence[float]) -> float:
    return (max(values) - min(values)) / 2


def _in_words(title: str) -> str:
    task, _, runtime = title.partition(", ")
    backend, batch, precision = runtime.split("-")
    names = {"ort": "ONNX Runtime"}
    return f"**{task}** in {names.get(backend, backend)}, batch {batch.removeprefix('b')}, {precision}"
