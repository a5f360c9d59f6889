"""The suite's figures: each model's roofline point, and what of its saved work became speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitslim.bench.roofline import MeasuredPeaks
from vitslim.bench.suite import DENSE, CaseResult, SuiteReport
from vitslim.bench.tables import significant
from vitslim.report.charts import Point, mark_kinds, scatter
from vitslim.report.drawing import RULE, SMALL, SOFT, Picture, draw, plain_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_PANELS = 8


def roofline(report: SuiteReport) -> Picture | None:
    """Achieved operations per second over operations per byte, below the peaks that the same run measured."""
    pieces = [piece for piece in report.pieces if piece.ceilings]
    points = [
        Point(row.model, row.intensity, row.tflops, row.kind)
        for piece in pieces
        for row in piece.rows
        if row.intensity and row.tflops
    ]
    if not points:
        return None
    peaks = _peaks(pieces)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        low, high = min(point.x for point in points) / 3, max(point.x for point in points) * 3
        for number, (precision, own) in enumerate(peaks.items()):
            ridge = own.tflops * 1e3 / own.gbytes_s
            places = [min(low, ridge / 2), ridge, max(high, ridge * 2)]
            heights = [min(own.tflops, at * own.gbytes_s / 1e3) for at in places]
            axes.plot(places, heights, ("-", "--", ":")[number % 3], color=SOFT, linewidth=1.3, zorder=1)
            words = f"{precision}: {significant(own.tflops)} TFLOP/s, {significant(own.gbytes_s)} GB/s"
            above: dict[str, Any] = {"textcoords": "offset points", "ha": "right", "fontsize": SMALL, "color": SOFT}
            axes.annotate(words, (places[-1], heights[-1]), (0, 4), **above)
        mark_kinds(axes, points)
        plain_log(axes, "x", high / low)
        plain_log(axes, "y", max(own.tflops for own in peaks.values()) / min(point.y for point in points))
        axes.set_xlabel("operations per byte that has to move")
        axes.set_ylabel("achieved TFLOP/s")
        axes.grid()
        figure.legend(loc="outside upper left", ncols=4, handletextpad=0.1, columnspacing=1.2)

    note = "Lines: the measured peaks, a large matrix product and a large copy, of the same run."
    words = f"{len(points)} measured models, their arithmetic per byte and what they reached"
    return draw("Roofline", paint, height=3.6, description=words, note=note)


def work_and_speed(report: SuiteReport) -> list[Picture]:
    """One figure per setting: on the line all saved work became speed."""
    pieces = [piece for piece in report.pieces if piece.rows and piece.piece.backend != "train"]
    settings = [(piece, batch) for piece in pieces for batch in piece.piece.batches]
    drawn = [picture for piece, batch in settings if (picture := _panel(piece, batch)) is not None]
    return drawn[:_MOST_PANELS]


def _panel(piece: CaseResult, batch: int) -> Picture | None:
    rows = [row for row in piece.rows if row.batch == batch]
    dense = next((row for row in rows if row.model == DENSE), None)
    if dense is None or len(rows) < 2:
        return None
    points = [
        Point(row.model, dense.macs / row.macs, row.speedup_vs_dense, row.kind) for row in rows if row is not dense
    ]

    def decorate(axes: Axes) -> None:
        axes.autoscale_view()
        limits = axes.get_xlim(), axes.get_ylim()
        axes.axline((1, 1), slope=1, color=RULE, linewidth=2.5, zorder=0)
        axes.axhline(1, color=SOFT, linewidth=0.8, linestyle="--", zorder=0)
        axes.set_xlim(min(limits[0][0], 0.97), limits[0][1])
        axes.set_ylim(min(limits[1][0], 0.95), limits[1][1])

    own = piece.piece
    size = f" {own.image_size} px" if own.image_size else ""
    title = f"{own.model}{size}, {own.backend} {own.precision}, batch {batch}"
    note = "Line: all of the saved work became speed. Below the dashed line: slower than dense."
    return scatter(title, points, "multiply-accumulates, dense over model", "speed", note=note, decorate=decorate)


def _peaks(pieces: Sequence[CaseResult]) -> dict[str, MeasuredPeaks]:
    """The highest measured peaks per precision: those of a run that was disturbed would flatter its rows."""
    peaks: dict[str, MeasuredPeaks] = {}
    for piece in pieces:
        known, own = peaks.get(piece.piece.precision), piece.ceilings
        if own is not None and (known is None or own.tflops > known.tflops):
            peaks[piece.piece.precision] = own
    return peaks
