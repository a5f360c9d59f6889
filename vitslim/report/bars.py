"""The drawings made of bars: figures per block, speed ratios, sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vitslim.report.axes import Axis, drawing, fit_axis, value_frame
from vitslim.report.documents import BenchRow
from vitslim.report.heatmap import runs
from vitslim.report.markup import Markup, element
from vitslim.report.numbers import Number, fixed, times

_WIDTH = 520.0
_ROW_HEIGHT, _BAR_HEIGHT = 40.0, 14.0
_END_ROOM = 50.0  # for a ratio that stands beyond the end of its bar


@dataclass(frozen=True)
class Series:
    """One value per block; ``shade`` is the CSS class that gives its colour."""

    name: str
    values: Sequence[float | None]
    shade: str


def block_bars(series: Sequence[Series], layers: Sequence[str], marked: Sequence[int], y_name: str) -> Markup:
    """Bars side by side for every block; the recommended blocks stand on a band."""
    width, height = 480.0, 236.0
    largest = max((value for one in series for value in one.values if value is not None), default=1.0)
    y_axis = Axis(0, max(1.0, largest), height - 44, 44)
    left, right = 38.0, width - 6
    slot = (right - left) / len(layers)
    pieces = [
        element("rect", x=left + first * slot, y=44, width=(last - first + 1) * slot, height=height - 88, class_="band")
        for first, last in runs(marked)
    ]
    pieces += value_frame(left, right, y_axis, "block", y_name)
    pieces += _block_labels(layers, left, slot, height - 28, set(marked))
    bar = slot * 0.74 / len(series)
    for place, one in enumerate(series):
        for layer, value in enumerate(one.values):
            if value is None:
                continue
            top = y_axis.position(value)
            x = left + layer * slot + slot * 0.13 + place * bar
            title = element("title", f"{layers[layer]}, {one.name}: {fixed(value, 3)}")
            size = {"width": max(1.0, bar - 0.8), "height": max(0.8, y_axis.start - top)}
            pieces.append(element("rect", title, x=x, y=top, class_=one.shade, **size))
    names = [(one.name, one.shade) for one in series] if len(series) > 1 else []
    pieces += _key(names, right, 12.0)
    description = f"{y_name} per block: " + "; ".join(
        f"{one.name} " + ", ".join(fixed(value) for value in one.values) for one in series
    )
    return drawing(width, height, description, *pieces)


def speed_bars(rows: Mapping[str, BenchRow], description: str) -> Markup:
    """Speed ratios against dense as bars that start at 1, to the right faster, to the left slower.

    The thin line over a bar reaches from the 10th to the 90th percentile of the ratio over the rounds. Names stand
    above their bars, so that the drawing is no wider than a narrow page can show.
    """
    left, right = _END_ROOM, _WIDTH - _END_ROOM
    bottom = 24 + _ROW_HEIGHT * len(rows)
    reach = [
        value for row in rows.values() for value in (row.speedup_vs_dense, *(row.spread or ())) if value is not None
    ]
    x_axis = fit_axis([*reach, 0.9, 1.1], left, right)
    one = x_axis.position(1)
    pieces: list[Markup] = []
    for tick in x_axis.ticks():
        x = x_axis.position(tick)
        pieces.append(element("line", x1=x, x2=x, y1=20, y2=bottom, class_="grid"))
        pieces.append(element("text", times(tick), x=x, y=bottom + 16, text_anchor="middle", class_="tick"))
    pieces.append(element("line", x1=one, x2=one, y1=18, y2=bottom, class_="baseline"))
    for place, (name, row) in enumerate(rows.items()):
        pieces += _speed_bar(name, row, x_axis, 24 + place * _ROW_HEIGHT)
    pieces.append(element("text", "dense, fused attention", x=one, y=12, text_anchor="middle", class_="tick"))
    return drawing(_WIDTH, bottom + 24, description, *pieces)


def _speed_bar(name: str, row: BenchRow, x_axis: Axis, y: float) -> list[Markup]:
    ratio, word = row.speedup_vs_dense, row.verdict
    if ratio is None or word is None:
        return []
    one, here = x_axis.position(1), x_axis.position(ratio)
    low, high = (x_axis.position(value) for value in row.spread or (ratio, ratio))
    shade = word.replace(" ", "-")
    title = element("title", f"{name}: {times(ratio)}, {word}")
    bar = {"x": min(one, here), "width": max(1.5, abs(here - one)), "y": y + 19, "height": _BAR_HEIGHT}
    end = (
        {"x": max(here, high, one) + 7, "text_anchor": "start"}
        if ratio >= 1
        else {"x": min(here, low, one) - 7, "text_anchor": "end"}
    )
    middle = y + 19 + _BAR_HEIGHT / 2
    pieces = [
        element("text", name, x=0, y=y + 14, class_="label haloed"),
        element("rect", title, class_=f"speed-{shade}", **bar),
        element("text", times(ratio), y=middle + 4.5, class_=f"label haloed value-{shade}", **end),
    ]
    if row.spread:
        pieces.append(element("line", x1=low, x2=high, y1=middle, y2=middle, class_="whisker"))
    return pieces


def size_bars(sizes: Mapping[str, tuple[Number, str]], description: str) -> Markup:
    """Horizontal bars from zero, each below its name and a text on its value."""
    largest = max(value for value, _ in sizes.values()) or 1.0
    axis = Axis(0, largest, 0, _WIDTH)
    pieces: list[Markup] = []
    for place, (name, (value, label)) in enumerate(sizes.items()):
        y, end = place * _ROW_HEIGHT, axis.position(value)
        pieces.append(element("text", name, x=0, y=y + 14, class_="label"))
        pieces.append(element("text", label, x=_WIDTH, y=y + 14, text_anchor="end", class_="label"))
        pieces.append(element("rect", x=0, y=y + 19, width=max(1.0, end), height=_BAR_HEIGHT, class_="bar"))
    return drawing(_WIDTH, _ROW_HEIGHT * len(sizes) + 6, description, *pieces)


def _block_labels(layers: Sequence[str], left: float, slot: float, y: float, marked: set[int]) -> list[Markup]:
    every = 1 if len(layers) <= 24 else 2
    return [
        element(
            "text",
            str(layer),
            x=left + (layer + 0.5) * slot,
            y=y,
            text_anchor="middle",
            class_="tick marked-text" if layer in marked else "tick",
        )
        for layer in range(0, len(layers), every)
    ]


def _key(names: Sequence[tuple[str, str]], right: float, y: float) -> list[Markup]:
    """Names of series with a spot of their colour, flush right on one line."""
    pieces: list[Markup] = []
    x = right
    for name, shade in reversed(names):
        x -= 6.2 * len(name)
        pieces.append(element("text", name, x=x, y=y, class_="tick"))
        pieces.append(element("rect", x=x - 14, y=y - 9, width=10, height=10, class_=shade))
        x -= 30
    return pieces
