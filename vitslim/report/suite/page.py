"""The page of a benchmark of many cases, and its tables as text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitslim.bench.suite import DENSE, CaseResult, SuiteReport
from vitslim.files import write_text
from vitslim.report.charts import Point, scatter, trade_off
from vitslim.report.content import Listing, Page, Section, absent, pictures
from vitslim.report.drawing import RULE, SOFT, Picture
from vitslim.report.numbers import half_width
from vitslim.report.page import render
from vitslim.report.suite import tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_PICTURES = 8


def write_suite(report: SuiteReport, folder: str | Path) -> Path:
    """Write ``tables.md`` and the page, ``suite.html``."""
    page = Path(folder) / "suite.html"
    write_text(page.with_name("tables.md"), render_tables(report) + "\n")
    write_text(page, render(_page(report)))
    return page


def render_tables(report: SuiteReport) -> str:
    """All tables as GitHub markdown."""
    shown = [*tables.targets_table(report), *tables.accuracy_table(report), *tables.overviews(report)]
    details = [tables.case_table(one) for one in report.cases if one.rows]
    missing = "\n".join(f"* {sentence}" for sentence in tables.not_measured(report))
    shown += [*tables.triton_tables(report), *tables.kernel_tables(report)]
    parts = [tables.caption(report), *(one.markdown() for one in [*shown, *details])]
    return "\n\n".join([*parts, *([f"Not measured:\n\n{missing}"] if missing else [])])


def _page(report: SuiteReport) -> Page:
    timed, missing = [one for one in report.cases if one.rows], tables.not_measured(report)
    drawn = [_trade_off(report, one) if report.trained else _work_and_speed(one) for one in timed[:_MOST_PICTURES]]
    parts = {
        "Targets": tables.targets_table(report),
        "Accuracy": tables.accuracy_table(report),
        "Speed": tables.overviews(report) or [absent("Not measured", report.command)],
        "Figures": pictures(*drawn),
        "Kernels": [*tables.triton_tables(report), *tables.kernel_tables(report)],
        "Details": [tables.case_table(one) for one in timed],
        "Not measured": [Listing(missing, is_code=False)] if missing else [],
    }
    sections = [Section(name.lower().replace(" ", "-"), name, name, own) for name, own in parts.items() if own]
    return Page(f"{report.benchmark} benchmark", f"Preset {report.preset}", tables.caption(report), sections)


def _trade_off(report: SuiteReport, case: CaseResult) -> Picture | None:
    """Accuracy over speed in one case."""
    points = [
        Point(one.model, own.speedup_vs_dense, 100 * row.top1, row.kind, 100 * half_width(row.top1, row.images))
        for one in report.trained
        if (row := one.row) is not None and (own := case.row(one.timed_as)) is not None
    ]
    return trade_off(tables.case_title(case), points, "The front joins the models that no other beats in both.")


def _work_and_speed(case: CaseResult) -> Picture | None:
    """What of the saved work became speed in one case."""
    dense = case.row(DENSE)
    rows = [row for row in case.rows if (row.model, row.precision) != (DENSE, case.case.precision)]
    if dense is None or not rows:
        return None
    points = [
        Point(
            f"{row.model} {row.precision}" if case.case.also else row.model,
            dense.macs / row.macs,
            row.speedup_vs_dense,
            row.kind,
        )
        for row in rows
    ]

    def decorate(axes: Axes) -> None:
        axes.axline((1, 1), slope=1, color=RULE, linewidth=2.5, zorder=0)
        axes.axhline(1, color=SOFT, linewidth=0.8, linestyle="--", zorder=0)

    title, x_name = tables.case_title(case), "multiply-accumulates, dense over model"
    note = "Line: all of the saved work became speed. Below the dashed line: slower than dense."
    return scatter(title, points, x_name, "speed", note=note, decorate=decorate)
