"""The accuracy benchmark's table and page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitslim.bench.accuracy import AccuracyReport, AccuracyRow
from vitslim.bench.suite import GainTarget, SuiteRow
from vitslim.bench.tables import significant
from vitslim.files import write_text
from vitslim.report.charts import Point, trade_off
from vitslim.report.content import Cell, Listing, Note, Page, Section, Table, pictures
from vitslim.report.drawing import Picture
from vitslim.report.numbers import half_width
from vitslim.report.page import render
from vitslim.report.sections.speed import Setting, setting_name, setting_of
from vitslim.report.suite.tables import verdict_cell

_BASELINE = "dense-finetuned"  # the dense model with the students' budget


def write_accuracy(report: AccuracyReport, folder: str | Path) -> list[Path]:
    """Write ``accuracy.html`` and ``tables.md``.

    Returns:
        The files, the page first.
    """
    page, tables = Path(folder) / "accuracy.html", Path(folder) / "tables.md"
    write_text(tables, render_accuracy(report) + "\n")
    write_text(page, render(_page(report)))
    return [page, tables]


def render_accuracy(report: AccuracyReport) -> str:
    """Table, caption and notes as GitHub markdown; the README's part too."""
    if not report.rows:
        return f"Not measured yet; the command is `{report.command}`."
    tables = [table.markdown() for table in _tables(report)]
    return "\n\n".join([*tables, _caption(report), "\n".join(f"* {note}" for note in _notes(report))])


def accuracy_table(report: AccuracyReport) -> Table:
    """One row per model: what it reached, what it costs, how fast it is."""
    settings, baseline = _settings(report), _baseline(report)
    header = ["model", "top-1", "±", "vs fine-tuned", "agreement", "params M", "GMAC"]
    header += [f"{backend} {precision} b{batch}" for backend, precision, batch in settings]
    return Table("Accuracy and speed against dense", header, [_line(row, baseline, settings) for row in report.rows])


def _tables(report: AccuracyReport) -> list[Table]:
    """The table of all models, then the preset's targets with the fastest model that is accurate enough."""
    if not report.aims:
        return [accuracy_table(report)]
    header = ["aim", "at least", "loss at most", "measured", "by", "met"]
    lines = [
        [one.what, f"{one.at_least:.2f}x", "–" if one.max_loss is None else f"{one.max_loss:g}", *_reached(report, one)]
        for one in report.aims
    ]
    return [accuracy_table(report), Table("Aims", header, lines)]


def _reached(report: AccuracyReport, target: GainTarget) -> tuple[str, str, str | Cell]:
    baseline, setting = _baseline(report), (target.backend, target.precision, target.batch)
    timed = [(row, own) for row in report.rows if row.model in target.competitors and (own := _at(row, setting))]
    if baseline is None or not timed:
        return "not measured", "–", "–"
    # Shares of whole images: a loss of just so many is no more than that.
    loss = {row.model: 100 * (baseline.top1 - row.top1) - 1e-9 for row, _ in timed}
    enough = [(row, own) for row, own in timed if target.max_loss is None or loss[row.model] <= target.max_loss]
    if not enough:
        return "none is as accurate", "–", verdict_cell(False)
    row, own = max(enough, key=lambda pair: pair[1].speedup_vs_dense)
    found = f"{own.speedup_vs_dense:.2f}x, {100 * (row.top1 - baseline.top1):+.2f}"
    return found, row.model, verdict_cell(own.speedup_vs_dense >= target.at_least)


def _caption(report: AccuracyReport) -> str:
    """On what task, with which budget, on which machine."""
    if not report.rows:
        return "Nothing is trained yet."
    settings, environment = report.settings, report.environment
    data = settings["data"]
    drawn = report.drawn_images_per_second
    trained = max(row.trained_images_per_second for row in report.rows)
    gpu = ", ".join(one["name"] for one in environment["gpu"]) if settings["device"] == "cuda" else ""
    parts = [
        f"{data['classes']} classes of fractal images at {data['image_size']} px, drawn while training",
        f"teacher {settings['model']['name']} trained for {settings['teacher']['steps']} steps, every student for "
        f"{settings['budget']['steps']}, batch {settings['batch_size']}",
        f"± is half of the 95 % interval of {report.rows[0].images} held-out images",
        f"{'–' if drawn is None else significant(drawn)} images/s drawn, at most {significant(trained)} trained on",
        gpu or environment["cpu"],
        f"torch {environment['torch']}",
        *(["quick run: the figures mean little"] if report.quick else []),
        f"`{report.command}`",
    ]
    return "; ".join(parts) + "."


def _line(row: AccuracyRow, baseline: AccuracyRow | None, settings: Sequence[Setting]) -> list[str]:
    return [
        row.model,
        f"{100 * row.top1:.2f} %",
        f"{100 * half_width(row.top1, row.images):.2f}",
        "–" if baseline is None else f"{100 * (row.top1 - baseline.top1):+.2f}",
        "–" if row.agreement is None else f"{100 * row.agreement:.2f} %",
        f"{row.params / 1e6:.2f}",
        f"{row.macs / 1e9:.4g}",
        *(_speed_cell(_at(row, setting)) for setting in settings),
    ]


def _speed_cell(row: SuiteRow | None) -> str:
    return "–" if row is None else f"{row.speedup_vs_dense:.2f}x, {significant(row.latency_ms_p50)} ms"


def _baseline(report: AccuracyReport) -> AccuracyRow | None:
    return next((row for row in report.rows if row.model == _BASELINE), None)


def _settings(report: AccuracyReport) -> list[Setting]:
    return list(dict.fromkeys(setting_of(one) for row in report.rows for one in row.speed))


def _at(row: AccuracyRow, setting: Setting) -> SuiteRow | None:
    return next((one for one in row.speed if setting_of(one) == setting), None)


def _notes(report: AccuracyReport) -> list[str]:
    return [*report.notes, *([f"Not done yet: {', '.join(report.left)}."] if report.left else [])]


def _trade_off(report: AccuracyReport, setting: Setting) -> Picture | None:
    points = [
        Point(row.model, own.speedup_vs_dense, 100 * row.top1, row.kind, 100 * half_width(row.top1, row.images))
        for row in report.rows
        if (own := _at(row, setting)) is not None
    ]
    return trade_off(setting_name(setting), points, "The front joins the models that no other beats in both.")


def _page(report: AccuracyReport) -> Page:
    tables = _tables(report) if report.rows else []
    drawn = pictures(*(_trade_off(report, setting) for setting in _settings(report)))
    sections = [
        Section("table", "Table", "Accuracy, cost and speed", [*tables, Listing(_notes(report), is_code=False)]),
        Section(
            "trade", "Trade-off", "Accuracy against speed", drawn or [Note("Speed is not measured yet.", "absent")]
        ),
    ]
    return Page("accuracy benchmark", f"Preset {report.preset}", _caption(report), sections)
