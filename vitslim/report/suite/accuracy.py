"""The accuracy benchmark's table, picture and page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitslim.analysis.canvas import INK, MUTED, SMALL, Axes, Figure, canvas, save_figure
from vitslim.bench.accuracy import AccuracyReport, AccuracyRow
from vitslim.bench.suite import GainTarget, SuiteRow
from vitslim.bench.tables import significant
from vitslim.errors import MissingDependencyError
from vitslim.files import write_text
from vitslim.report.markup import Markup, element, figure, join, paragraph
from vitslim.report.numbers import half_width
from vitslim.report.page import compose
from vitslim.report.scatter import Point, pareto_front
from vitslim.report.suite.page import picture, table_markup, with_code
from vitslim.report.suite.plots import LABEL, finish, marks, name_points
from vitslim.report.suite.tables import Table

CONTROL = "dense-control"
_PICTURE = "Held-out accuracy against speed; the front joins what no other beats in both"

Setting = tuple[str, str, int]


def write_accuracy(report: AccuracyReport, folder: str | Path) -> list[Path]:
    """Write tables.md, pareto.png where matplotlib is there, and accuracy.html.

    Returns:
        The files, the page first.
    """
    folder = Path(folder)
    try:
        pictures, fault = _write_plot(report, folder), None
    except MissingDependencyError as error:
        pictures, fault = [], str(error)
    write_text(folder / "tables.md", render_accuracy(report) + "\n")
    write_text(folder / "accuracy.html", _page(report, pictures, fault))
    return [folder / "accuracy.html", folder / "tables.md", *pictures]


def render_accuracy(report: AccuracyReport) -> str:
    """Table, caption and notes as GitHub markdown; the README's part too."""
    if not report.rows:
        return f"Not measured yet; the command is `{report.command}`."
    notes = "\n".join(f"* {note}" for note in [*report.notes, *_left(report)])
    aims = accuracy_aims(report)
    tables = [table.markdown() for table in (accuracy_table(report), aims) if table is not None]
    return "\n\n".join([*tables, accuracy_caption(report), notes])


def accuracy_table(report: AccuracyReport) -> Table:
    """One row per model: what it reached, what it costs, how fast it is."""
    settings = _settings(report.rows)
    control = next((row for row in report.rows if row.model == CONTROL), None)
    header = ["model", "top-1", "±", "vs control", "agreement", "params M", "GMAC"]
    header += [f"{backend} {precision} b{batch}" for backend, precision, batch in settings]
    lines = [_line(row, control, settings) for row in report.rows]
    return Table("Accuracy and speed against dense", [header, *lines])


def accuracy_aims(report: AccuracyReport) -> Table | None:
    """The preset's aims with the fastest model that is accurate enough."""
    if not report.aims:
        return None
    header = ["aim", "at least", "loss at most", "measured", "by", "met"]
    lines = [
        [aim.what, f"{aim.at_least:.2f}x", "–" if aim.max_loss is None else f"{aim.max_loss:g}", *_reached(report, aim)]
        for aim in report.aims
    ]
    return Table("Aims", [header, *lines])


def _reached(report: AccuracyReport, aim: GainTarget) -> tuple[str, str, str]:
    control = next((row for row in report.rows if row.model == CONTROL), None)
    setting = (aim.backend, aim.precision, aim.batch)
    timed = [(row, own) for row in report.rows if row.model in aim.competitors and (own := _at(row, setting))]
    if control is None or not timed:
        return "not measured", "–", "–"
    # Shares of whole images: a loss of just so many is no more than that.
    loss = {row.model: 100 * (control.top1 - row.top1) - 1e-9 for row, _ in timed}
    enough = [(row, own) for row, own in timed if aim.max_loss is None or loss[row.model] <= aim.max_loss]
    if not enough:
        return "none is as accurate", "–", "no"
    row, own = max(enough, key=lambda pair: pair[1].speedup_vs_dense)
    found = f"{own.speedup_vs_dense:.2f}x, {100 * (row.top1 - control.top1):+.2f}"
    return found, row.model, "yes" if own.speedup_vs_dense >= aim.at_least else "no"


def accuracy_caption(report: AccuracyReport) -> str:
    """On what task, with which budget, on which machine."""
    settings, environment = report.settings, report.environment
    data = settings["data"]
    drawn = report.drawn_images_per_second
    trained = max((row.trained_images_per_second for row in report.rows), default=0)
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


def _line(row: AccuracyRow, control: AccuracyRow | None, settings: Sequence[Setting]) -> list[str]:
    return [
        row.model,
        f"{100 * row.top1:.2f} %",
        f"{100 * half_width(row.top1, row.images):.2f}",
        "–" if control is None else f"{100 * (row.top1 - control.top1):+.2f}",
        "–" if row.agreement is None else f"{100 * row.agreement:.2f} %",
        f"{row.params / 1e6:.2f}",
        f"{row.macs / 1e9:.4g}",
        *(_speed_cell(_at(row, setting)) for setting in settings),
    ]


def _speed_cell(row: SuiteRow | None) -> str:
    return "–" if row is None else f"{row.speedup_vs_dense:.2f}x, {significant(row.latency_ms_p50)} ms"


def _settings(rows: Sequence[AccuracyRow]) -> list[Setting]:
    return list(dict.fromkeys((one.backend, one.precision, one.batch) for row in rows for one in row.speed))


def _at(row: AccuracyRow, setting: Setting) -> SuiteRow | None:
    return next((one for one in row.speed if (one.backend, one.precision, one.batch) == setting), None)


def _left(report: AccuracyReport) -> list[str]:
    return [f"Not done yet: {', '.join(report.left)}."] if report.left else []


def _write_plot(report: AccuracyReport, folder: Path) -> list[Path]:
    settings = _settings(report.rows)
    if not settings:
        return []
    path = folder / "pareto.png"
    save_figure(_pareto(report, settings), path)
    return [path]


def _pareto(report: AccuracyReport, settings: Sequence[Setting]) -> Figure:
    columns = min(len(settings), 2)
    lines = -(-len(settings) // columns)
    whole, first = canvas(6.6 * columns, 4.3 * lines + 0.5, "", "")
    whole.delaxes(first)
    whole.suptitle("Accuracy against speed", x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK)
    for number, setting in enumerate(settings):
        _panel(whole.add_subplot(lines, columns, number + 1), report, setting, legend=number == 0)
    return whole


def _panel(axes: Axes, report: AccuracyReport, setting: Setting, *, legend: bool) -> None:
    timed = [(row, own) for row in report.rows if (own := _at(row, setting)) is not None]
    places = {row.model: (own.speedup_vs_dense, 100 * row.top1) for row, own in timed}
    for kind in LABEL:
        own = [places[row.model] for row, _ in timed if row.kind == kind]
        marks(axes, [x for x, _ in own], [y for _, y in own], kind)
    front = pareto_front([Point(row.model, one.speedup_vs_dense, row.top1, one.latency_ms_p50) for row, one in timed])
    # In steps, since nothing was measured between two points.
    axes.step(
        [point.speedup for point in front],
        [100 * point.top1 for point in front],
        where="pre",
        color=MUTED,
        linestyle="--",
        linewidth=1,
        zorder=1,
    )
    axes.axvline(1, color=MUTED, linewidth=0.8, zorder=0)
    errors = [100 * half_width(row.top1, row.images) for row, _ in timed]
    axes.errorbar(
        [x for x, _ in places.values()],
        [y for _, y in places.values()],
        yerr=errors,
        fmt="none",
        ecolor="#b8c0c8",
        elinewidth=1,
        zorder=1,
    )
    axes.margins(0.08)
    name_points(axes, [(x, y, name) for name, (x, y) in places.items()])
    backend, precision, batch = setting
    axes.set_title(f"{backend} {precision}, batch {batch}", loc="left", fontsize=SMALL, color=INK)
    axes.set_xlabel("speed against dense, fused attention (×)", color=MUTED, fontsize=SMALL)
    axes.set_ylabel("held-out top-1, %", color=MUTED, fontsize=SMALL)
    finish(axes, legend=legend)


def _page(report: AccuracyReport, pictures: Sequence[Path], fault: str | None) -> str:
    notes = element("ul", *(element("li", note) for note in [*report.notes, *_left(report)]), class_="note")
    tables = [accuracy_table(report), accuracy_aims(report)] if report.rows else []
    body: list[Markup] = [table_markup(table) for table in tables if table is not None]
    drawn = [figure(_PICTURE, picture(path, _PICTURE)) for path in pictures]
    if fault is not None:
        drawn = [paragraph(f"Not drawn: {fault}", class_="absent")]
    sections = [
        ("table", "Table", "Accuracy, cost and speed", join([*body, notes])),
        ("trade", "Trade-off", "Accuracy against speed", join(drawn or [paragraph("Speed is not measured yet.")])),
    ]
    top = element(
        "header",
        paragraph("vitslim accuracy benchmark", class_="eyebrow"),
        element("h1", f"Preset {report.preset}"),
        paragraph(with_code(accuracy_caption(report)) if report.rows else "Nothing is trained yet.", class_="lead"),
    )
    return compose(f"{report.preset} – vitslim accuracy benchmark", top, sections)
