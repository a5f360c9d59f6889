"""The suite's page and files: suite.html, tables.md, the pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from vitslim.bench.suite import SuiteReport
from vitslim.errors import MissingDependencyError
from vitslim.files import write_text
from vitslim.report.markup import Markup, element, figure, join, paragraph
from vitslim.report.markup import table as html_table
from vitslim.report.page import compose
from vitslim.report.sections.absent import absent
from vitslim.report.suite.plots import write_suite_plots
from vitslim.report.suite.tables import (
    Table,
    aims_table,
    caption,
    kernel_tables,
    main_overviews,
    not_measured,
    overviews,
    piece_table,
    shortened,
)

_PICTURES = {
    "roofline.png": "Where every measured model stands between arithmetic and memory",
    "work_and_speed.png": "What of the saved multiply-accumulates became speed",
}


def write_suite(report: SuiteReport, folder: str | Path) -> list[Path]:
    """Write the tables as text, the pictures where matplotlib is there, and one page with both.

    Returns:
        The files, the page first.
    """
    folder = Path(folder)
    try:
        pictures, fault = write_suite_plots(report, folder), None
    except MissingDependencyError as error:
        pictures, fault = [], str(error)
    write_text(folder / "tables.md", render_tables(report) + "\n")
    write_text(folder / "suite.html", render_suite(report, pictures, fault))
    return [folder / "suite.html", folder / "tables.md", *pictures]


def render_tables(report: SuiteReport) -> str:
    """All tables as GitHub markdown."""
    details = [piece_table(piece, batch) for piece in report.pieces if piece.rows for batch in piece.piece.batches]
    tables = [*_summary(report, overviews(report)), *details]
    missing = [f"* {sentence}" for sentence in not_measured(report)]
    pieces = [caption(report), *(table.markdown() for table in tables)]
    return "\n\n".join([*pieces, *(["Not measured:\n\n" + "\n".join(missing)] if missing else [])])


def render_overview(report: SuiteReport) -> str:
    """The main overviews for a terminal."""
    return "\n\n".join([*(table.text() for table in _main(report)), caption(report)])


def readme_tables(report: SuiteReport) -> str:
    """The main overviews alone, for the README."""
    tables = [table.markdown() for table in _main(report)]
    left = f"Not measured yet: {len(report.left)} of {report.total} pieces, {shortened(report.left)}."
    return "\n\n".join([*tables, caption(report), *([left] if report.left else [])])


def render_suite(report: SuiteReport, pictures: Sequence[Path], fault: str | None = None) -> str:
    """The page as text; pictures are put into it."""
    details = [piece_table(piece, batch) for piece in report.pieces if piece.rows for batch in piece.piece.batches]
    sections = [
        ("aims", "Aims", "What was aimed at", _aims(report)),
        ("overview", "Overview", "Speed against dense", _tables(overviews(report), report.command)),
        ("pictures", "Pictures", "Roofline, work and speed", _pictures(pictures, fault, report.command)),
        ("kernels", "Kernels", "Kernels alone", _tables(kernel_tables(report), "vitslim bench suite --preset gpu")),
        ("details", "All figures", "All figures", _tables(details, report.command)),
        ("missing", "Not measured", "Not measured", _missing(report)),
    ]
    top = element(
        "header",
        paragraph("vitslim benchmark suite", class_="eyebrow"),
        element("h1", f"Preset {report.preset}"),
        paragraph(with_code(caption(report)), class_="lead"),
    )
    return compose(f"{report.preset} – vitslim benchmark suite", top, sections)


def _main(report: SuiteReport) -> list[Table]:
    return _summary(report, main_overviews(report))


def _summary(report: SuiteReport, shown: Sequence[Table]) -> list[Table]:
    aims = aims_table(report)
    return [*([aims] if aims else []), *shown, *kernel_tables(report)]


def _tables(tables: Sequence[Table], command: str) -> Markup:
    if not tables:
        return absent("Not measured", command)
    return join([table_markup(one) for one in tables])


def _aims(report: SuiteReport) -> Markup:
    aims = aims_table(report)
    return paragraph("There are no aims for these pieces.") if aims is None else table_markup(aims)


def table_markup(one: Table) -> Markup:
    """A table below its title."""
    header, *rows = one.cells
    pieces = [element("h3", one.title), html_table("", header, [map(_painted, row) for row in rows])]
    return join([*pieces, *([paragraph(one.note, class_="note")] if one.note else [])])


def with_code(text: str) -> Markup:
    """A sentence whose parts between backticks are code."""
    return join([element("code", part) if index % 2 else part for index, part in enumerate(text.split("`"))])


def _painted(cell: str) -> str:
    """An aim that is met or missed, in its colour."""
    colour = {"yes": "good", "no": "bad"}.get(cell)
    return cell if colour is None else element("span", cell, class_=colour)


def _pictures(pictures: Sequence[Path], fault: str | None, command: str) -> Markup:
    if fault is not None:
        return paragraph(f"Not drawn: {fault}", class_="absent")
    if not pictures:
        return absent("Nothing to draw", command)
    return join([figure(_PICTURES[path.name], picture(path, _PICTURES[path.name])) for path in pictures])


def picture(path: Path, words: str) -> Markup:
    """A PNG put into the page, with the sentence that stands for it where it cannot be seen."""
    data = base64.b64encode(path.read_bytes()).decode()
    return element("img", src=f"data:image/png;base64,{data}", alt=words, style="max-width:100%")


def _missing(report: SuiteReport) -> Markup:
    sentences = not_measured(report)
    if not sentences:
        return paragraph("Everything that was asked for was measured.")
    return element("ul", *(element("li", sentence) for sentence in sentences))
