"""The figures that several pages share: similarity, bars, curves, named points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

from vitslim.analysis.result import Table as Matrix
from vitslim.bench.result import BenchRow
from vitslim.bench.suite import Kind
from vitslim.report import drawing as look
from vitslim.report.content import TONES
from vitslim.report.drawing import Picture, draw, drawable, label, plain_log
from vitslim.report.numbers import digits, fixed, times

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SERIES = (look.FIRST, look.SECOND)
_TONE_COLOUR = {"good": look.GOOD, "bad": look.BAD, "even": look.SOFT}
_LOG_FROM = 20  # a loss that falls further than this is unreadable on a linear axis
_NAME_INCHES = 0.16  # from one name beside a scatter to the next
_NAMES_AT = 1.04  # where they begin, in widths of the axes
PointKind = Kind | Literal["methods", "steps", "improved", "planner"]
"""What sort of model a point is: of a benchmark, or how a planner found it."""
# Distinct with any colour vision; the shape says the same.
_STYLES: dict[PointKind, tuple[str, str, str]] = {
    "dense": (look.INK, "D", "dense"),
    "method": (look.FIRST, "o", "method"),
    "pair": (look.SECOND, "^", "pair of methods"),
    "baseline": (look.FOURTH, "s", "baseline"),
    "methods": (look.SECOND, "^", "several methods"),
    "steps": (look.THIRD, "s", "a choice per block"),
    "improved": (look.FOURTH, "v", "improved"),
    "planner": (look.SECOND, "^", "planner"),
}


def heat_map(title: str, matrix: Matrix, marked: Sequence[int], note: str) -> Picture:
    """Similarity of every pair of blocks, 0 to 1, the first block at the top left; ``marked`` blocks are outlined."""
    count = len(matrix)
    before = [matrix[layer][layer - 1] for layer in range(1, count)]

    def paint(figure: Figure) -> None:
        from matplotlib.patches import Rectangle

        axes = figure.add_subplot()
        values = [[math.nan if value is None else value for value in row] for row in matrix]
        axes.imshow(values, cmap="viridis", vmin=0, vmax=1, interpolation="none")
        _number_blocks(axes, count, marked, "xy")
        axes.set_xlabel("block")
        axes.set_ylabel("block")
        axes.spines[:].set_visible(False)
        for layer in marked:
            axes.add_patch(Rectangle((layer - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor=look.BAD, linewidth=1.6))
        scale = axes.inset_axes((1.04, 0.0, 0.045, 1.0))
        scale.imshow([[step / 63] for step in range(64)], cmap="viridis", origin="lower", aspect="auto")
        scale.set_xticks([])
        scale.yaxis.tick_right()
        scale.set_yticks([-0.5, 31.5, 63.5], ["0", ".5", "1"])
        scale.spines[:].set_visible(False)

    words = f"{title}: CKA of {count} blocks; each with the one before: {', '.join(map(fixed, before))}"
    return draw(title, paint, height=3.2, width=3.7, description=words, note=note)


def block_bars(
    title: str,
    series: Mapping[str, Sequence[float | None]],
    marked: Sequence[int],
    name: str,
    note: str,
    *,
    above: Mapping[int, str] | None = None,
    highest: float = 0.0,
    cap: float = math.inf,
) -> Picture:
    """A bar per block and series; ``marked`` blocks stand on a band, and ``above`` some bars stands a word.

    Args:
        highest: that the axis reaches at least.
        cap: that it reaches at most; taller bars have their value written in them.
    """
    known = {
        one: {block: value for block, value in enumerate(values) if value is not None and drawable(value)}
        for one, values in series.items()
    }
    found = [value for bars in known.values() for value in bars.values()]
    width = 0.7 / len(series)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for number, ((one, bars), colour) in enumerate(zip(known.items(), _SERIES, strict=False)):
            places = [block + width * (number - (len(series) - 1) / 2) for block in bars]
            axes.bar(places, list(bars.values()), width=width, color=colour, label=one)
        top = min(max([highest, *found]), cap) or 1.0
        for block, words in (above or {}).items():
            height = min(top, max((bars[block] for bars in known.values() if block in bars), default=0.0))
            axes.annotate(words, (block, height), (0, 2), textcoords="offset points", ha="center", fontsize=look.SMALL)
        for block, value in ((block, value) for bars in known.values() for block, value in bars.items() if value > top):
            axes.text(block, top, digits(value, 2), rotation=90, ha="center", va="top", color=look.PAPER)
        axes.set_ylim(min([0.0, *found]), 1.12 * top if above else top)
        axes.set_ylabel(name)
        _finish_blocks(axes, max(map(len, series.values())), marked)
        if len(series) > 1:
            figure.legend(loc="outside upper left", ncols=2)

    return draw(title, paint, height=2.7, description=_block_words(name, series), note=note)


def block_dots(
    title: str, series: Mapping[str, Sequence[float | None]], marked: Sequence[int], name: str, note: str
) -> Picture | None:
    """A dot per block and series on a logarithmic axis, where a bar's length would mean nothing."""
    known = {
        one: [
            (block, value) for block, value in enumerate(values) if value is not None and value > 0 and drawable(value)
        ]
        for one, values in series.items()
    }
    found = [value for dots in known.values() for _, value in dots]
    if not found:
        return None
    depth = max(map(len, series.values()))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for block in range(depth):
            ends = [value for dots in known.values() for at, value in dots if at == block]
            axes.plot([block] * len(ends), ends, color=look.RULE, linewidth=4, solid_capstyle="round", zorder=2)
        for (one, dots), colour in zip(known.items(), _SERIES, strict=False):
            places, values = [at for at, _ in dots], [value for _, value in dots]
            axes.plot(places, values, "o", markersize=6, color=colour, label=one, zorder=3)
        plain_log(axes, "y", max(found) / min(found))
        axes.set_ylim(min(found) / 1.6, max(found) * 1.6)
        axes.set_ylabel(name)
        _finish_blocks(axes, depth, marked)
        figure.legend(loc="outside upper left", ncols=2)

    return draw(title, paint, height=2.7, description=_block_words(name, series), note=note)


def _block_words(name: str, series: Mapping[str, Sequence[float | None]]) -> str:
    return f"{name} per block; " + "; ".join(f"{one}: {', '.join(map(fixed, all_))}" for one, all_ in series.items())


def step_curve(title: str, name: str, steps: Sequence[int], values: Sequence[float | None]) -> Picture | None:
    """A figure over the steps of training, with gaps where it is not finite; None for fewer than two finite values."""
    known = [(step, value) for step, value in zip(steps, values, strict=True) if value is not None and drawable(value)]
    if len(known) < 2:
        return None
    finite = [value for _, value in known]
    is_log = min(finite) > 0 and max(finite) / min(finite) > _LOG_FROM

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        drawn = [value if value is not None and drawable(value) else math.nan for value in values]
        axes.plot(steps, drawn, color=look.FIRST, linewidth=1.5)
        axes.plot(*known[-1], "o", markersize=4, color=look.FIRST)
        if is_log:
            plain_log(axes, "y", max(finite) / min(finite))
        axes.set_xlabel("step")
        axes.set_ylabel(name)
        axes.grid(axis="y")

    words = f"{name}: {finite[0]:.4g} at step {known[0][0]}, {finite[-1]:.4g} at step {known[-1][0]}"
    return draw(title, paint, height=2.5, description=words)


def speed_bars(title: str, rows: Mapping[str, BenchRow]) -> Picture | None:
    """Speed ratios as bars that start at 1; a line reaches from the 10th to the 90th percentile over the rounds."""
    shown = {
        name: row
        for name, row in rows.items()
        if row.verdict and all(map(drawable, (row.speedup_vs_dense, row.speedup_p10, row.speedup_p90)))
    }
    if not shown:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, row in enumerate(shown.values()):
            colour = _TONE_COLOUR[TONES[row.verdict or "even"]]
            axes.barh(place, row.speedup_vs_dense - 1, left=1, height=0.34, color=colour)
            axes.plot([1, 1], [place - 0.22, place + 0.22], color=look.INK, linewidth=1.1)
            axes.plot([row.speedup_p10, row.speedup_p90], [place, place], color=look.INK, linewidth=1.1)
            _write_above(axes, place, f"{times(row.speedup_vs_dense)} {row.verdict}", colour)
        axes.margins(x=0.08)
        axes.set_xlabel("speed, dense baseline 1")
        axes.grid(axis="x")
        _finish_named(axes, list(shown))

    words = "; ".join(f"{name} {times(row.speedup_vs_dense)} {row.verdict}" for name, row in shown.items())
    note = "Thin lines: from the 10th to the 90th percentile of the ratio over the rounds."
    return draw(title, paint, height=0.5 + 0.42 * len(shown), description=f"{title}: {words}", note=note)


def size_bars(title: str, sizes: Mapping[str, tuple[float, str]], note: str = "") -> Picture:
    """Horizontal bars from zero, each below its name and what its value is in words."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, (value, words) in enumerate(sizes.values()):
            axes.barh(place, value if drawable(value) else 0, height=0.34, color=look.FIRST)
            _write_above(axes, place, words, look.SOFT)
        axes.set_xticks([])
        axes.set_xlim(left=0)
        axes.margins(x=0)
        axes.spines["bottom"].set_visible(False)
        _finish_named(axes, list(sizes))

    words = "; ".join(f"{name} {value}" for name, (_, value) in sizes.items())
    return draw(title, paint, height=0.2 + 0.42 * len(sizes), description=f"{title}: {words}", note=note)


@dataclass(frozen=True)
class Point:
    """One model in a scatter, named unless ``name`` is empty; ``half_width`` is half of an interval up and down."""

    name: str
    x: float
    y: float
    kind: PointKind = "method"
    half_width: float = 0.0


def scatter(
    title: str,
    points: Sequence[Point],
    x_name: str,
    y_name: str,
    *,
    note: str = "",
    decorate: Callable[[Axes], object] | None = None,
) -> Picture:
    """Points with their names in a column at the right, each tied to its point, none over another."""
    shown = [point for point in points if drawable(point.x) and drawable(point.y)]
    named = [point for point in shown if point.name]
    height = max(3.3, 0.8 + _NAME_INCHES * len(named))

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for point in shown:
            axes.errorbar(point.x, point.y, yerr=point.half_width, ecolor=look.RULE, elinewidth=1, fmt="none", zorder=1)
        mark_kinds(axes, shown)
        axes.margins(0.09)
        axes.set_xlabel(x_name)
        axes.set_ylabel(y_name)
        axes.grid()
        if decorate is not None:
            decorate(axes)
        _name_points(axes, named, _NAME_INCHES / (height - 0.6))
        figure.legend(loc="outside upper left", ncols=4, handletextpad=0.1, columnspacing=1.2)

    places = "; ".join(f"{point.name or point.kind} {point.x:.4g}, {point.y:.4g}" for point in shown)
    words = f"{title}: {y_name} over {x_name}: {places}"
    return draw(title, paint, height=height, description=words, note=note)


def trade_off(title: str, points: Sequence[Point], note: str = "") -> Picture | None:
    """Accuracy (percent) over speed, with the front of the models that no other beats in both."""
    if not points:
        return None

    def decorate(axes: Axes) -> None:
        draw_front(axes, points)
        axes.axvline(1, color=look.SOFT, linewidth=0.9, zorder=0)

    speed, accuracy = "speed, dense baseline 1", "held-out top-1, %"
    return scatter(title, points, speed, accuracy, note=note, decorate=decorate)


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in one figure without losing in the other, fastest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda one: (-one.x, -one.y)):
        if not front or point.y > front[-1].y:
            front.append(point)
    return front


def draw_front(axes: Axes, points: Sequence[Point], words: str | None = None) -> None:
    """The front in steps, since nothing was measured between two points: how accurate a model of that speed can be."""
    front = pareto_front(points)
    places = [point.x for point in front], [point.y for point in front]
    axes.step(*places, where="post", color=look.SOFT, linestyle="--", linewidth=1, zorder=1, label=words)


def mark_kinds(axes: Axes, points: Sequence[Point]) -> None:
    """The points in the colours and shapes of their kinds, which a legend names."""
    for kind, (colour, shape, words) in _STYLES.items():
        own = [point for point in points if point.kind == kind]
        if own:
            style: dict[str, Any] = {"color": colour, "markeredgecolor": look.PAPER, "markeredgewidth": 0.7}
            places = [point.x for point in own], [point.y for point in own]
            axes.plot(*places, shape, markersize=6.5, zorder=3, label=words, **style)


def _name_points(axes: Axes, points: Sequence[Point], gap: float) -> None:
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    places = [((point.x - left) / (right - left), (point.y - low) / (high - low)) for point in points]
    heights = spread(sorted((y for _, y in places), reverse=True), gap)
    for index, height in zip(shortest_ties(places, heights), heights, strict=True):
        axes.annotate(
            label(points[index].name),
            (points[index].x, points[index].y),
            (_NAMES_AT, height),
            textcoords="axes fraction",
            fontsize=look.SMALL,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": look.SOFT, "linewidth": 0.5, "shrinkB": 4, "relpos": (0, 0.5)},
            zorder=2,
        )


def shortest_ties(places: Sequence[tuple[float, float]], heights: Sequence[float]) -> list[int]:
    """Which of the places each height in the column beside them belongs to, so that no two lines to them cross."""

    def length(index: int, height: float) -> float:
        x, y = places[index]
        return math.hypot(_NAMES_AT - x, y - height)

    order = sorted(range(len(places)), key=lambda index: -places[index][1])
    pairs = list(combinations(range(len(order)), 2))
    is_shorter = True
    while is_shorter:  # two lines that cross are longer than the same two uncrossed
        is_shorter = False
        for upper, lower in pairs:
            one, other = order[upper], order[lower]
            crossed = length(other, heights[upper]) + length(one, heights[lower])
            if crossed < length(one, heights[upper]) + length(other, heights[lower]) - 1e-9:
                order[upper], order[lower] = other, one
                is_shorter = True
    return order


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


def _write_above(axes: Axes, place: int, words: str, colour: str) -> None:
    axes.text(1, place - 0.24, words, transform=axes.get_yaxis_transform(), ha="right", va="bottom", color=colour)


def _finish_named(axes: Axes, names: Sequence[str]) -> None:
    """Names above their bars, the first at the top."""
    for place, name in enumerate(names):
        axes.text(0, place - 0.24, label(name), transform=axes.get_yaxis_transform(), va="bottom")
    axes.set_yticks([])
    axes.set_ylim(len(names) - 0.7, -0.75)
    axes.spines["left"].set_visible(False)


def _finish_blocks(axes: Axes, count: int, marked: Sequence[int]) -> None:
    for block in marked:
        axes.axvspan(block - 0.5, block + 0.5, color=look.BAND, linewidth=0, zorder=0)
    axes.set_xlim(-0.6, count - 0.4)
    axes.set_xlabel("block")
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    _number_blocks(axes, count, marked, "x")


def _number_blocks(axes: Axes, count: int, marked: Sequence[int], sides: str) -> None:
    shown = list(range(0, count, -(-count // 16)))
    for side in sides:
        axis = axes.xaxis if side == "x" else axes.yaxis
        axis.set_ticks(shown, [str(block) for block in shown])
        for text, block in zip(axis.get_ticklabels(), shown, strict=True):
            text.set_color(look.ACCENT if block in marked else look.SOFT)
            text.set_fontweight("bold" if block in marked else "normal")
