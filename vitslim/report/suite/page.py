"""The suite's page, and its tables as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitslim.bench.suite import SuiteReport
from vitslim.files import write_text
from vitslim.report.content import Listing, Note, Page, Piece, Section, Table, absent, pictures
from vitslim.report.page import render
from vitslim.report.suite.plots import roofline, work_and_speed
from vitslim.report.suite.tables import (
    caption,
    kernel_tables,
    main_overviews,
    not_measured,
    overviews,
    piece_table,
    shortened,
    targets_table,
)


def write_suite(report: SuiteReport, folder: str | Path) -> list[Path]:
    """Write ``suite.html`` and ``tables.md``.

    Returns:
        The files, the page first.
    """
    page, tables = Path(folder) / "suite.html", Path(folder) / "tables.md"
    write_text(tables, render_tables(report) + "\n")
    write_text(page, render(_page(report)))
    return [page, tables]


def render_tables(report: SuiteReport) -> str:
    """All tables as GitHub markdown."""
    tables = [*_summary(report, overviews(report)), *_details(report)]
    missing = [f"* {sentence}" for sentence in not_measured(report)]
    pieces = [caption(report), *(table.markdown() for table in tables)]
    return "\n\n".join([*pieces, *(["Not measured:\n\n" + "\n".join(missing)] if missing else [])])


def render_overview(report: SuiteReport) -> str:
    """The main overviews for a terminal."""
    tables = _summary(report, main_overviews(report))
    return "\n\n".join([*(table.text() for table in tables), caption(report)])


def readme_tables(report: SuiteReport) -> str:
    """The main overviews alone, for the README."""
    tables = [table.markdown() for table in _summary(report, main_overviews(report))]
    left = f"Not measured yet: {len(report.left)} of {report.total} pieces, {shortened(report.left)}."
    return "\n\n".join([*tables, caption(report), *([left] if report.left else [])])


def _page(report: SuiteReport) -> Page:
    command, targets, missing = report.command, targets_table(report), not_measured(report)
    drawn = pictures(roofline(report), *work_and_speed(report))
    rest: Piece = Listing(missing, is_code=False) if missing else Note("Everything that was asked for was measured.")
    sections = [
        Section("overview", "Overview", "Speed against dense", _or_absent(overviews(report), command)),
        Section("pictures", "Pictures", "Roofline, work and speed", drawn or [absent("Nothing to draw", command)]),
        Section(
            "kernels", "Kernels", "Kernels alone", _or_absent(kernel_tables(report), "vitslim bench suite --preset gpu")
        ),
        Section("details", "All figures", "All figures", _or_absent(_details(report), command)),
        Section("missing", "Not measured", "Not measured", [rest]),
    ]
    if targets is not None:
        sections.insert(0, Section("targets", "Targets", "Which targets are met", [targets]))
    return Page("benchmark suite", f"Preset {report.preset}", caption(report), sections)


def _details(report: SuiteReport) -> list[Table]:
    return [piece_table(piece, batch) for piece in report.pieces if piece.rows for batch in piece.piece.batches]


def _summary(report: SuiteReport, shown: Sequence[Table]) -> list[Table]:
    targets = targets_table(report)
    return [*([targets] if targets else []), *shown, *kernel_tables(report)]


def _or_absent(tables: Sequence[Table], command: str) -> list[Piece]:
    return [*tables] or [absent("Not measured", command)]
