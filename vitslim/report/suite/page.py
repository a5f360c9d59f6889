"""The suite's page, and its tables as text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitslim.bench.suite import SuiteReport
from vitslim.files import write_text
from vitslim.report.content import Listing, Note, Page, Piece, Section, Table, absent, pictures
from vitslim.report.page import render
from vitslim.report.suite import tables
from vitslim.report.suite.plots import roofline, work_and_speed


def write_suite(report: SuiteReport, folder: str | Path) -> list[Path]:
    """Write ``suite.html`` and ``tables.md``.

    Returns:
        The files, the page first.
    """
    page, text = Path(folder) / "suite.html", Path(folder) / "tables.md"
    write_text(text, render_tables(report) + "\n")
    write_text(page, render(_page(report)))
    return [page, text]


def render_tables(report: SuiteReport) -> str:
    """All tables as GitHub markdown."""
    shown = [*_summary(report, tables.overviews(report)), *_details(report)]
    missing = "\n".join(f"* {sentence}" for sentence in tables.not_measured(report))
    pieces = [tables.caption(report), *(one.markdown() for one in shown)]
    return "\n\n".join([*pieces, *([f"Not measured:\n\n{missing}"] if missing else [])])


def render_overview(report: SuiteReport) -> str:
    """The main overviews for a terminal."""
    shown = _summary(report, tables.main_overviews(report))
    return "\n\n".join([*(one.text() for one in shown), tables.caption(report)])


def readme_tables(report: SuiteReport) -> str:
    """The main overviews alone, for the README."""
    shown = _summary(report, tables.main_overviews(report))
    left = f"Not measured yet: {len(report.left)} of {report.total} pieces, {tables.shortened(report.left)}."
    rest = [left] if report.left else []
    return "\n\n".join([*(one.markdown() for one in shown), tables.caption(report), *rest])


def _page(report: SuiteReport) -> Page:
    targets, missing = tables.targets_table(report), tables.not_measured(report)
    drawn = pictures(roofline(report), *work_and_speed(report))
    rest: Piece = Listing(missing, is_code=False) if missing else Note("Everything that was asked for was measured.")
    nothing: list[Piece] = [absent("Not measured", report.command)]
    no_kernels: list[Piece] = [absent("Not measured", "vitslim bench suite --preset gpu")]
    sections = [
        Section("overview", "Overview", "Speed against dense", tables.overviews(report) or nothing),
        Section("figures", "Figures", "Roofline, work and speed", drawn or nothing),
        Section("kernels", "Kernels", "Kernels alone", tables.kernel_tables(report) or no_kernels),
        Section("details", "All figures", "All figures", _details(report) or nothing),
        Section("missing", "Not measured", "Not measured", [rest]),
    ]
    if targets is not None:
        sections.insert(0, Section("targets", "Targets", "Which targets are met", [targets]))
    return Page("benchmark suite", f"Preset {report.preset}", tables.caption(report), sections)


def _details(report: SuiteReport) -> list[Table]:
    return [tables.piece_table(piece, batch) for piece in report.pieces if piece.rows for batch in piece.piece.batches]


def _summary(report: SuiteReport, shown: Sequence[Table]) -> list[Table]:
    targets = tables.targets_table(report)
    return [*([targets] if targets else []), *shown, *tables.kernel_tables(report)]
