"""The page that compares several students of one teacher."""

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from vitslim.bench.ratios import VERDICT_RULE, is_across
from vitslim.files import write_text
from vitslim.report.charts import Point, trade_off
from vitslim.report.comparison import Comparison, ComparisonRow
from vitslim.report.content import Cell, Element, Listing, Note, Page, Section, Table, absent, pictures
from vitslim.report.drawing import Picture
from vitslim.report.numbers import ABSENT, amount, fixed, percent, points, times
from vitslim.report.page import render
from vitslim.report.sections.speed import (
    Setting,
    bench_remarks,
    bench_table,
    ratio_cell,
    setting_name,
    where_measured,
    work_picture,
)

Columns = dict[str, Callable[[ComparisonRow], str | Cell]]
_BESIDE = 2  # settings whose speeds stand in the table of all models


def write_comparison(comparison: Comparison, path: str | Path) -> Path:
    """Write the page that compares several students to ``path``; ``read_comparison`` collects them from a folder."""
    write_text(path, render_comparison(comparison))
    return Path(path)


def render_comparison(comparison: Comparison) -> str:
    """The whole page as text."""
    sections = [
        Section("overview", "Overview", "All models in one table", _overview(comparison)),
        Section("trade", "Trade-off", "Accuracy, speed and work", _trade_offs(comparison)),
        Section("timings", "Timings", "All timings", _timings(comparison)),
    ]
    dense = sum(row.is_dense for row in comparison.rows)
    lead = f"{_count(len(comparison.rows) - dense, 'student')} against {_count(dense, 'dense model')}."
    return render(Page("comparison", comparison.title, lead, sections, cautions=comparison.cautions))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _overview(comparison: Comparison) -> list[Element]:
    quality: Columns = {
        "Top-1": lambda row: percent(row.top1),
        "±": lambda row: ABSENT if row.top1_half_width is None else fixed(100 * row.top1_half_width),
        "Against teacher": lambda row: ABSENT if row.top1_vs_teacher is None else points(row.top1_vs_teacher),
        "Agreement with teacher": lambda row: percent(row.agreement),
        "Parameters": lambda row: amount(row.params),
        "MACs": lambda row: amount(row.macs, "MAC"),
    }
    speed: Columns = {setting_name(setting): partial(_speed_cell, setting=setting) for setting in comparison.settings}
    interval, ratios = "± is half of the 95 % interval that the number of images allows.", _speed_words(comparison)
    if len(speed) <= _BESIDE:
        tables = [_table(comparison, f"{interval} {ratios}".strip(), quality | speed)]
    else:
        tables = [_table(comparison, interval, quality), _table(comparison, ratios, speed)]
    folders = " ".join(shlex.quote(row.model) for row in comparison.rows if not row.is_dense)
    missing = [] if speed else [absent("Speed not measured", f"vitslim bench {folders} --out bench.json")]
    notes = [f"{row.model}: {row.note}" for row in comparison.rows if row.note]
    return [*tables, *missing, Listing(notes, is_code=False)]


def _table(comparison: Comparison, caption: str, columns: Columns) -> Table:
    rows = [[row.model, *(cell(row) for cell in columns.values())] for row in comparison.rows]
    return Table(caption, ("Model", *columns), rows)


def _speed_words(comparison: Comparison) -> str:
    timed = [one for row in comparison.rows for one in row.speed]
    if not timed:
        return ""
    words = "Speed: the ratio of median latencies against the dense model with fused attention in the same session."
    return words + (" Below it, smaller: against dense in torch fp32 at the same batch." * any(map(is_across, timed)))


def _speed_cell(row: ComparisonRow, setting: Setting) -> str | Cell:
    found = row.at(setting)
    if found is None:
        return ABSENT
    return ratio_cell(found, f"{times(found.speedup_vs_dense_torch)} dense in torch" if is_across(found) else "")


def _trade_offs(comparison: Comparison) -> list[Element]:
    drawn = [_trade_off(comparison, setting) for setting in comparison.settings]
    note = Note("Accuracy and speed were not both measured.", "absent")
    if any(drawn):
        note = Note(
            "Up and to the right is better. The dashed front joins the models that no other beats in both; left of the "
            "line a model is slower than the dense one.",
            "note",
        )
    left_out = [row.model for row in comparison.rows if not row.speed or row.top1 is None]
    missing = f"Not shown, accuracy or speed missing: {', '.join(left_out)}."
    return [
        note,
        *pictures(*drawn, _work(comparison)),
        *([Note(missing, "absent")] if any(drawn) and left_out else []),
    ]


def _trade_off(comparison: Comparison, setting: Setting) -> Picture | None:
    here = [
        Point(
            row.model,
            found.speedup_vs_dense,
            100 * row.top1,
            "dense" if row.is_dense else "method",
            100 * (row.top1_half_width or 0.0),
        )
        for row in comparison.rows
        if row.top1 is not None and (found := row.at(setting)) is not None
    ]
    return trade_off(setting_name(setting), here)


def _work(comparison: Comparison) -> Picture | None:
    counted = {row.model: row.macs for row in comparison.rows if row.macs}
    dense = next((row.macs for row in comparison.rows if row.is_dense and row.macs), None)
    return work_picture(counted, dense) if counted else None


def _timings(comparison: Comparison) -> list[Element]:
    if not comparison.benches:
        return [Note("Not measured.", "absent")]
    count = len(comparison.benches)
    several = f"The timings come from {count} sessions, each with its own dense baseline: compare ratios only."
    sessions = [element for bench in comparison.benches for element in (bench_table(bench), *bench_remarks(bench))]
    head = [Note(several, "absent")] if count > 1 else []
    return [*head, *sessions, Note(VERDICT_RULE, "note"), *where_measured(comparison.benches)]
