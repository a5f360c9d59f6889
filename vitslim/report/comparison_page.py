"""The page that compares several students of one teacher."""

from pathlib import Path

from vitslim.files import write_text
from vitslim.report.bars import size_bars
from vitslim.report.comparison import Comparison, ComparisonEntry
from vitslim.report.markup import Markup, element, figure, join, paragraph, table
from vitslim.report.numbers import ABSENT, amount, fixed, half_width, percent, points
from vitslim.report.page import compose
from vitslim.report.scatter import Point, accuracy_speed_scatter, pareto_front
from vitslim.report.sections.absent import absent
from vitslim.report.sections.speed import bench_table, not_measured, ratio_cell, setting_name, where_measured


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
    lead = f"{len(comparison.entries) - dense} students against {dense} dense model{'' if dense == 1 else 's'}."
    cautions = [paragraph(element("strong", "Mind: "), caution, class_="bad") for caution in comparison.cautions]
    title = element("h1", comparison.title)
    return element(
        "header", paragraph("vitslim comparison", class_="eyebrow"), title, paragraph(lead, class_="lead"), *cautions
    )


def _overview(comparison: Comparison) -> Markup:
    settings = comparison.settings
    header = ("Model", "Top-1", "±", "Against teacher", "Agreement with teacher", "Parameters", "MACs")
    rows = [_overview_row(entry, comparison) for entry in comparison.entries]
    caption = (
        "± is half of the 95 % interval that the number of images allows. Speed is the ratio of median latencies "
        "against the dense model with fused attention in the same run."
    )
    notes = [
        element("li", element("strong", entry.name), f": {entry.note}") for entry in comparison.entries if entry.note
    ]
    pieces = [table(caption, [*header, *map(setting_name, settings)], rows), element("ul", *notes, class_="note")]
    if not settings:
        pieces.append(absent("Speed not measured", "vitslim bench …"))
    return join(pieces)


def _overview_row(entry: ComparisonEntry, comparison: Comparison) -> list[str]:
    quality, teacher = entry.quality, comparison.teacher
    top1 = quality.top1 if quality else None
    reference = teacher.quality.top1 if teacher and teacher.quality and entry is not teacher else None
    first = entry.rows[0] if entry.rows else None
    rows = [entry.row_at(setting) for setting in comparison.settings]
    return [
        entry.name,
        percent(top1),
        fixed(100 * half_width(top1, quality.images)) if quality and top1 is not None else ABSENT,
        points(top1 - reference) if top1 is not None and reference is not None else ABSENT,
        percent(quality.agreement if quality else None),
        amount(entry.parameters),
        amount(first.macs if first else None, "MAC"),
        *("baseline" if row and entry.is_dense and row.speedup_vs_dense == 1 else ratio_cell(row) for row in rows),
    ]


def _scatters(comparison: Comparison) -> Markup:
    figures = [one for setting in comparison.settings if (one := _scatter(comparison, setting)) is not None]
    if not figures:
        return absent("Accuracy and speed were not both measured", "vitslim run …")
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
    counted = {entry.name: entry.rows[0].macs for entry in comparison.entries if entry.rows and entry.rows[0].macs}
    if not counted:
        return absent("Not counted", "vitslim bench …")
    teacher = comparison.teacher
    dense = counted.get(teacher.name) if teacher else None
    bars = {
        name: (float(macs), amount(macs, "MAC") + (f", {percent(macs / dense, 1)}" if dense else ""))
        for name, macs in counted.items()
    }
    description = "Multiply-accumulates per image: " + "; ".join(f"{name} {label}" for name, (_, label) in bars.items())
    note = "Per image, with the attention core. This is work, not speed: the timings decide."
    return figure(
        "Multiply-accumulates per image, and their share of the teacher’s", size_bars(bars, description), note
    )


def _timings(comparison: Comparison) -> Markup:
    if not comparison.benches:
        return absent("Not measured", "vitslim bench …")
    several = len(comparison.benches) > 1
    run = (
        f"The timings come from {len(comparison.benches)} runs, each with its own dense baseline: compare ratios only."
    )
    head = [paragraph(run, class_="absent")] if several else []
    remarks = [remark for bench in comparison.benches for remark in not_measured(bench)]
    return join([*head, *map(bench_table, comparison.benches), *remarks, where_measured(*comparison.benches)])
