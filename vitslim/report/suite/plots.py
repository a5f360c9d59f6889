"""The suite's pictures: where each model stands on the roofline, and what of its saved work became speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vitslim.analysis.canvas import GRID, INK, MUTED, SMALL, Axes, Figure, canvas, save_figure
from vitslim.bench.roofline import MeasuredPeaks
from vitslim.bench.suite import DENSE, CaseResult, Kind, SuiteReport, SuiteRow
from vitslim.bench.tables import significant

# Blue, orange and the rest are told apart with any colour vision; the shape says the same.
COLOUR: dict[Kind, str] = {"dense": INK, "method": "#00538a", "pair": "#c2410c", "baseline": "#7b8794"}
SHAPE: dict[Kind, str] = {"dense": "D", "method": "o", "pair": "^", "baseline": "s"}
LABEL: dict[Kind, str] = {"dense": "dense", "method": "one method", "pair": "two methods", "baseline": "baseline"}
_MAX_PANELS = 6
_NAME_GAP = 0.058  # of the height of a panel, between two names


def write_suite_plots(report: SuiteReport, folder: str | Path) -> list[Path]:
    """Draw ``roofline.png`` and ``work_and_speed.png``; a picture of which nothing was measured is left out.

    Raises:
        MissingDependencyError: matplotlib is not there.
    """
    pieces = [piece for piece in report.pieces if piece.ceilings and piece.rows and piece.piece.backend != "train"]
    if not pieces:
        return []
    drawings: dict[str, Callable[[Sequence[CaseResult]], Figure]] = {
        "roofline.png": _roofline,
        "work_and_speed.png": _work_and_speed,
    }
    paths: list[Path] = []
    for name, draw in drawings.items():
        path = Path(folder) / name
        save_figure(draw(pieces), path)
        paths.append(path)
    return paths


def _roofline(pieces: Sequence[CaseResult]) -> Figure:
    figure, axes = canvas(
        8.6, 5.2, "Roofline", "ceilings: a large matrix product and a large copy, measured in the same run"
    )
    rows = [row for piece in pieces for row in piece.rows if row.intensity and row.tflops]
    intensities = [row.intensity for row in rows if row.intensity]
    low, high = min(intensities) / 3, max(intensities) * 3
    roofs = _roofs(pieces)
    for number, (precision, ceilings) in enumerate(roofs.items()):
        ridge = ceilings.tflops * 1e3 / ceilings.gbytes_s
        left, right = min(low, ridge / 2), max(high, ridge * 2)
        style = ("-", "--", ":")[number % 3]
        heights = [min(ceilings.tflops, at * ceilings.gbytes_s / 1e3) for at in (left, ridge, right)]
        axes.plot([left, ridge, right], heights, style, color=MUTED, linewidth=1.4, zorder=1)
        words = f"{precision}: {significant(ceilings.tflops)} TFLOP/s, {significant(ceilings.gbytes_s)} GB/s"
        axes.annotate(
            words, (right, heights[-1]), (0, 5), textcoords="offset points", ha="right", fontsize=SMALL, color=MUTED
        )
    for kind in LABEL:
        own = [row for row in rows if row.kind == kind]
        marks(axes, [row.intensity for row in own], [row.tflops for row in own], kind)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("operations per byte that has to move", color=MUTED, fontsize=SMALL)
    axes.set_ylabel("achieved TFLOP/s", color=MUTED, fontsize=SMALL)
    _plain_logs(axes)
    finish(axes, legend=True)
    return figure


def _work_and_speed(pieces: Sequence[CaseResult]) -> Figure:
    """One panel per setting: on the diagonal all saved work became speed."""
    settings = [(piece, batch) for piece in pieces for batch in piece.piece.batches if _rivals(piece, batch)]
    cut = f", the first {_MAX_PANELS} of {len(settings)} settings" if len(settings) > _MAX_PANELS else ""
    settings = settings[:_MAX_PANELS]
    columns = min(len(settings), 2) or 1
    lines = -(-len(settings) // columns) or 1
    figure, first = canvas(6.2 * columns, 3.9 * lines + 0.7, "", "")
    figure.delaxes(first)
    figure.suptitle(
        f"What of the saved work became speed{cut}", x=0.01, ha="left", fontsize=11, fontweight="bold", color=INK
    )
    panels = [
        _panel(figure.add_subplot(lines, columns, number + 1), piece, batch)
        for number, (piece, batch) in enumerate(settings)
    ]
    signs = {label: sign for axes in panels for sign, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    shown = [label for label in LABEL.values() if label in signs]
    figure.legend(
        [signs[label] for label in shown],
        shown,
        loc="outside lower left",
        ncols=4,
        frameon=False,
        fontsize=SMALL,
        labelcolor=INK,
        title="Line: all of the saved work. Below the dashed line: slower than dense.",
        title_fontsize=SMALL,
        alignment="left",
    )
    return figure


def _panel(axes: Axes, piece: CaseResult, batch: int) -> Axes:
    own = piece.piece
    dense = next(row for row in piece.rows if (row.model, row.batch) == (DENSE, batch))
    rows = _rivals(piece, batch)
    points = [(dense.macs / row.macs, row.speedup_vs_dense, row.model) for row in rows]
    x_low, x_high = _limits([1.0, *(x for x, _, _ in points)])
    y_low, y_high = _limits([1.0, *(y for _, y, _ in points)])
    axes.axline((1, 1), slope=1, color=GRID, linewidth=2.5, zorder=0)
    axes.axhline(1, color=MUTED, linewidth=0.8, linestyle="--", zorder=0)
    for kind in LABEL:
        here = [point for point, row in zip(points, rows, strict=True) if row.kind == kind]
        marks(axes, [x for x, _, _ in here], [y for _, y, _ in here], kind)
    axes.set_xlim(x_low, x_high)
    axes.set_ylim(y_low, y_high)
    name_points(axes, points)
    size = f" {own.image_size} px" if own.image_size else ""
    title = f"{own.model}{size}, {own.backend} {own.precision}, batch {batch}"
    axes.set_title(title, loc="left", fontsize=SMALL, color=INK)
    axes.set_xlabel("multiply-accumulates, dense over model", color=MUTED, fontsize=SMALL)
    axes.set_ylabel("speed against dense", color=MUTED, fontsize=SMALL)
    finish(axes, legend=False)
    return axes


def _limits(values: Sequence[float]) -> tuple[float, float]:
    air = 0.08 * (max(values) - min(values)) or 0.05
    return min(values) - air, max(values) + air


def _rivals(piece: CaseResult, batch: int) -> list[SuiteRow]:
    has_dense = any((row.model, row.batch) == (DENSE, batch) for row in piece.rows)
    return [row for row in piece.rows if has_dense and row.batch == batch and row.model != DENSE]


def _roofs(pieces: Sequence[CaseResult]) -> dict[str, MeasuredPeaks]:
    """The highest ceilings seen per precision: those of a piece that was disturbed would flatter its rows."""
    roofs: dict[str, MeasuredPeaks] = {}
    for piece in pieces:
        assert piece.ceilings is not None
        known = roofs.get(piece.piece.precision)
        if known is None or piece.ceilings.tflops > known.tflops:
            roofs[piece.piece.precision] = piece.ceilings
    return roofs


def marks(axes: Axes, xs: Sequence[Any], ys: Sequence[Any], kind: Kind) -> None:
    """Points of one kind, in its colour and shape."""
    if xs:
        axes.plot(
            xs,
            ys,
            SHAPE[kind],
            markersize=6.5,
            color=COLOUR[kind],
            label=LABEL[kind],
            zorder=3,
            markeredgecolor="white",
            markeredgewidth=0.6,
        )


def name_points(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Names in a column right of the axes, each tied to its point, none over another."""
    low, high = axes.get_ylim()
    ordered = sorted(points, key=lambda point: (-point[1], -point[0]))
    heights = spread([(y - low) / (high - low) for _, y, _ in ordered], _NAME_GAP)
    for (x, y, name), height in zip(ordered, heights, strict=True):
        axes.annotate(
            name,
            (x, y),
            (1.03, height),
            textcoords="axes fraction",
            fontsize=7,
            color=INK,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": "#b8c0c8",
                "linewidth": 0.6,
                "shrinkA": 1,
                "shrinkB": 4,
                "relpos": (0, 0.5),
            },
            zorder=2,
        )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Descending places in 0..1 moved apart to at least ``gap``, within 0..1 where there is room."""
    moved: list[float] = []
    for place in places:
        moved.append(min(place, moved[-1] - gap) if moved else min(place, 1.0))
    # What was pushed out at the bottom pushes the others up again.
    floor = 0.0
    for index in reversed(range(len(moved))):
        moved[index] = max(moved[index], floor)
        floor = moved[index] + gap
    return moved


def _plain_logs(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def finish(axes: Axes, *, legend: bool) -> None:
    """Grid, borders and ticks as in all pictures."""
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(MUTED)
    axes.tick_params(length=0, which="both", labelsize=SMALL, labelcolor=MUTED)
    if legend:
        axes.legend(frameon=False, fontsize=SMALL, labelcolor=INK, loc="best")
