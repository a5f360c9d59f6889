"""The page that compares several students of one teacher."""

import shlex
from pathlib import Path

from vitslim.bench.ratios import VERDICT_RULE, is_across
from vitslim.files import write_text
from vitslim.report.charts import Point, trade_off
from vitslim.report.comparison import Comparison, ComparisonRow
from vitslim.report.content import Cell, Listing, Note, Page, Piece, Section, Table, absent, pictures
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


def write_comparison(comparison: Comparison, path: str | Path) -> Path:
    """Write the page that compares several students to ``path``; ``read_comparison`` collects them from a folder."""
    write_text(path, render_comparison(comparison))
    return Path(path)


def render_comparison(comparison: Comparison) -> str:
    """The whole page as text."""
    sections = [
        Section("overview", "Overview", "All models in one table", _overview(comparison)),
        Section("trade", "Trade-off", "Accuracy against speed", _trade_offs(comparison)),
        Section("work", "Work", "Multiply-accumulates", _work(comparison)),
        Section("timings", "Timings", "All timings", _timings(comparison)),
    ]
    dense = sum(row.is_dense for row in comparison.rows)
    lead = f"{_count(len(comparison.rows) - dense, 'student')} against {_count(dense, 'dense model')}."
    return render(Page("comparison", comparison.title, lead, sections, cautions=comparison.cautions))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _overview(comparison: Comparison) -> list[Piece]:
    header = ("Model", "Top-1", "±", "Against teacher", "Agreement with teacher", "Parameters", "MACs")
    rows = [
        [
            row.model,
            percent(row.top1),
            ABSENT if row.top1_half_width is None else fixed(100 * row.top1_half_width),
            ABSENT if row.top1_vs_teacher is None else points(row.top1_vs_teacher),
            percent(row.agreement),
            amount(row.params),
            amount(row.macs, "MAC"),
        ]
        for row in comparison.rows
    ]
    caption = "± is half of the 95 % interval that the number of images allows."
    notes = [f"{row.model}: {row.note}" for row in comparison.rows if row.note]
    return [Table(caption, header, rows), _speeds(comparison), Listing(notes, is_code=False)]


def _speeds(comparison: Comparison) -> Piece:
    """Every model's ratios, one column per setting."""
    settings = comparison.settings
    if not settings:
        folders = " ".join(shlex.quote(row.model) for row in comparison.rows if not row.is_dense)
        return absent("Speed not measured", f"vitslim bench {folders} --out bench.json")
    rows = [[row.model, *(_speed_cell(row, setting) for setting in settings)] for row in comparison.rows]
    caption = "Speed: the ratio of median latencies against the dense model with fused attention in the same session."
    has_second = any(is_across(one) for row in comparison.rows for one in row.speed)
    second = " Below it, smaller: against dense in torch fp32 at the same batch." if has_second else ""
    return Table(caption + second, ("Model", *map(setting_name, settings)), rows)


def _speed_cell(row: ComparisonRow, setting: Setting) -> str | Cell:
    found = row.at(setting)
    if found is None:
        return ABSENT
    return ratio_cell(found, f"{times(found.speedup_vs_dense_torch)} dense in torch" if is_across(found) else "")


def _trade_offs(comparison: Comparison) -> list[Piece]:
    drawn = pictures(*(_trade_off(comparison, setting) for setting in comparison.settings))
    if not drawn:
        return [Note("Accuracy and speed were not both measured.", "absent")]
    note = (
        "Up and to the right is better. The dashed front joins the models that no other beats in both; left of the "
        "line a model is slower than the dense one."
    )
    left_out = [row.model for row in comparison.rows if not row.speed or row.top1 is None]
    missing = f"Not shown, accuracy or speed missing: {', '.join(left_out)}."
    return [Note(note, "note"), *drawn, *([Note(missing, "absent")] if left_out else [])]


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


def _work(comparison: Comparison) -> list[Piece]:
    counted = {row.model: row.macs for row in comparison.rows if row.macs}
    if not counted:
        return [absent("Not counted", "vitslim bench FOLDER")]
    dense = next((row.macs for row in comparison.rows if row.is_dense and row.macs), None)
    return pictures(work_picture(counted, dense), columns="one")


def _timings(comparison: Comparison) -> list[Piece]:
    if not comparison.benches:
        return [Note("Not measured.", "absent")]
    count = len(comparison.benches)
    several = f"The timings come from {count} sessions, each with its own dense baseline: compare ratios only."
    sessions = [piece for bench in comparison.benches for piece in (bench_table(bench), *bench_remarks(bench))]
    head = [Note(several, "absent")] if count > 1 else []
    return [*head, *sessions, Note(VERDICT_RULE, "note"), *where_measured(comparison.benches)]
