"""The page that compares several students of one teacher."""

import shlex
from pathlib import Path

from vitslim.bench.ratios import VERDICT_RULE, is_across
from vitslim.files import write_text
from vitslim.report.bars import size_bars
from vitslim.report.comparison import Comparison, ComparisonEntry
from vitslim.report.comparison_table import ComparisonRow, comparison_rows
from vitslim.report.documents import BenchRow
from vitslim.report.markup import Markup, element, figure, join, paragraph, table
from vitslim.report.numbers import ABSENT, amount, fixed, percent, points
from vitslim.report.page import compose
from vitslim.report.scatter import Point, accuracy_speed_scatter, pareto_front
from vitslim.report.sections.absent import absent
from vitslim.report.sections.speed import (
    across_cell,
    bench_remarks,
    bench_table,
    ratio_cell,
    setting_name,
    where_measured,
)


def write_comparison(comparison: Comparison, path: str | Path) -> Path:
    """Write the page that compares several students to ``path``; ``read_comparison`` collects them from a folder."""
    write_text(path, render_comparison(comparison))
    return Path(path)


def render_comparison(comparison: Comparison) -> str:
    """The whole page as text."""
    sections = [
        ("overview", "Overview", "All models in one table", _overview(comparison)),
        ("trade", "Trade-off", "Accuracy against speed", _scatters(comparison)),
        ("work", "Work", "Multiply-accumulates", _work(comparison)),
        ("timings", "Timings", "All timings", _timings(comparison)),
    ]
    return compose(f"{comparison.title} – vitslim comparison", _top(comparison), sections)


def _top(comparison: Comparison) -> Markup:
    dense = sum(entry.is_dense for entry in comparison.entries)
    students = len(comparison.entries) - dense
    lead = f"{_count(students, 'student')} against {_count(dense, 'dense model')}."
    cautions = [paragraph(element("strong", "Mind: "), caution, class_="bad") for caution in comparison.cautions]
    title = element("h1", comparison.title)
    return element(
        "header", paragraph("vitslim comparison", class_="eyebrow"), title, paragraph(lead, class_="lead"), *cautions
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _overview(comparison: Comparison) -> Markup:
    header = ("Model", "Top-1", "±", "Against teacher", "Agreement with teacher", "Parameters", "MACs")
    rows = [_overview_cells(row) for row in comparison_rows(comparison)]
    caption = "± is half of the 95 % interval that the number of images allows."
    notes = [
        element("li", element("strong", entry.name), f": {entry.note}") for entry in comparison.entries if entry.note
    ]
    return join([table(caption, header, rows), _speeds(comparison), element("ul", *notes, class_="note")])


def _overview_cells(row: ComparisonRow) -> list[str]:
    return [
        row.model,
        percent(row.top1),
        ABSENT if row.top1_half_width is None else fixed(100 * row.top1_half_width),
        ABSENT if row.top1_vs_teacher is None else points(row.top1_vs_teacher),
        percent(row.agreement),
        amount(row.params),
        amount(row.macs, "MAC"),
    ]


def _speeds(comparison: Comparison) -> Markup:
    """Every model's ratios, one column per setting."""
    settings = comparison.settings
    if not settings:
        folders = " ".join(shlex.quote(entry.name) for entry in comparison.entries if not entry.is_dense)
        return absent("Speed not measured", f"vitslim bench {folders} --out bench.json")
    rows = [
        [entry.name, *(_speed_cell(entry, entry.row_at(setting)) for setting in settings)]
        for entry in comparison.entries
    ]
    caption = "Speed: the ratio of median latencies against the dense model with fused attention in the same session."
    has_second = any(is_across(row) for entry in comparison.entries for row in entry.rows)
    second = " Below it, smaller: against dense in torch fp32 at the same batch." if has_second else ""
    return table(caption + second, ("Model", *map(setting_name, settings)), rows)


def _speed_cell(entry: ComparisonEntry, row: BenchRow | None) -> str:
    if row is None:
        return ABSENT
    first = "baseline" if entry.is_dense and row.speedup_vs_dense == 1 else ratio_cell(row)
    if not is_across(row):
        return first
    return join([first, element("small", f"{across_cell(row)} dense in torch")])


def _scatters(comparison: Comparison) -> Markup:
    figures = [one for setting in comparison.settings if (one := _scatter(comparison, setting)) is not None]
    if not figures:
        return paragraph("Accuracy and speed were not both measured.", class_="absent")
    note = (
        "Up and to the right is better. The dashed front joins the models that no other beats in both; left of the "
        "line a model is slower than the dense one. Beside each name: the median latency of one batch."
    )
    left_out = [
        entry.name for entry in comparison.entries if not entry.rows or not entry.quality or entry.quality.top1 is None
    ]
    missing = (
        [paragraph(f"Not shown, accuracy or speed missing: {', '.join(left_out)}.", class_="absent")]
        if left_out
        else []
    )
    return join([paragraph(note, class_="note"), element("div", *figures, class_="row two"), *missing])


def _scatter(comparison: Comparison, setting: tuple[str, str, int]) -> Markup | None:
    points_here = [
        Point(entry.name, row.speedup_vs_dense, entry.quality.top1, row.latency_ms_p50, entry.is_dense)
        for entry in comparison.entries
        if entry.quality and entry.quality.top1 is not None
        if (row := entry.row_at(setting)) and row.speedup_vs_dense is not None
    ]
    if not points_here:
        return None
    front = ", ".join(point.name for point in pareto_front(points_here))
    description = f"Top-1 against speed, {setting_name(setting)}; not beaten in both: {front}"
    return figure(setting_name(setting), accuracy_speed_scatter(points_here, description))


def _work(comparison: Comparison) -> Markup:
    counted = {entry.name: entry.macs for entry in comparison.entries if entry.macs}
    if not counted:
        return absent("Not counted, the folders are of an older version", "vitslim bench FOLDER")
    dense = next((entry.macs for entry in comparison.entries if entry.is_dense and entry.macs), None)
    bars = {
        name: (float(macs), amount(macs, "MAC") + (f", {percent(macs / dense, 1)}" if dense else ""))
        for name, macs in counted.items()
    }
    description = "Multiply-accumulates per image: " + "; ".join(f"{name} {label}" for name, (_, label) in bars.items())
    note = "Per image, with the attention core. This is work, not speed: the timings decide."
    return figure(
        "Multiply-accumulates per image, and their share of the first dense model’s", size_bars(bars, description), note
    )


def _timings(comparison: Comparison) -> Markup:
    if not comparison.benches:
        return paragraph("Not measured.", class_="absent")
    several = len(comparison.benches) > 1
    count = len(comparison.benches)
    run = f"The timings come from {count} sessions, each with its own dense baseline: compare ratios only."
    head = [paragraph(run, class_="absent")] if several else []
    sessions = [piece for bench in comparison.benches for piece in (bench_table(bench), *bench_remarks(bench))]
    return join([*head, *sessions, paragraph(VERDICT_RULE, class_="note"), where_measured(*comparison.benches)])
