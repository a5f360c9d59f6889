"""The drawings made of bars: figures per block, speed ratios, sizes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vitslim.report.axes import Axis, drawing, fit_axis, value_frame
from vitslim.report.documents import BenchRow
from vitslim.report.heatmap import runs
from vitslim.report.markup import Markup, element
from vitslim.report.numbers import Number, fixed, times

_LETTER = 6.6  # width of a letter of a label, rather too much


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
    return drawing(width, height, description, *pieces, min_width=420)


def speed_bars(rows: Mapping[str, BenchRow], description: str) -> Markup:
    """Speed ratios against dense as bars that start at 1, to the right faster, to the left slower.

    The thin line over a bar reaches from the 10th to the 90th percentile of the ratio over the rounds.
    """
    row_height, left = 26.0, _room_for(rows, 260.0, beside=44.0)
    right, width = left + 430, left + 500
    bottom = 30 + row_height * len(rows)
    reach = [
        value for row in rows.values() for value in (row.speedup_vs_dense, *(row.spread or ())) if value is not None
    ]
    x_axis = fit_axis([*reach, 0.9, 1.1], left, right)
    one = x_axis.position(1)
    pieces: list[Markup] = []
    for tick in x_axis.ticks():
        x = x_axis.position(tick)
        pieces.append(element("line", x1=x, x2=x, y1=24, y2=bottom, class_="grid"))
        pieces.append(element("text", times(tick), x=x, y=bottom + 16, text_anchor="middle", class_="tick"))
    for place, (name, row) in enumerate(rows.items()):
        pieces += _speed_bar(name, row, x_axis, 30 + place * row_height, row_height)
    pieces.append(element("line", x1=one, x2=one, y1=20, y2=bottom, class_="baseline"))
    pieces.append(element("text", "dense, fused attention", x=one, y=13, text_anchor="middle", class_="tick"))
    return drawing(width, bottom + 24, description, *pieces, min_width=620)


def _speed_bar(name: str, row: BenchRow, x_axis: Axis, y: float, row_height: float) -> list[Markup]:
    ratio, word = row.speedup_vs_dense, row.verdict
    if ratio is None or word is None:
        return []
    one, here = x_axis.position(1), x_axis.position(ratio)
    low, high = (x_axis.position(value) for value in row.spread or (ratio, ratio))
    title = element("title", f"{name}: {times(ratio)}, {word}")
    bar = {"x": min(one, here), "width": max(1.5, abs(here - one)), "y": y + 4, "height": row_height - 9}
    end = (
        {"x": max(here, high) + 7, "text_anchor": "start"}
        if ratio >= 1
        else {"x": min(here, low) - 7, "text_anchor": "end"}
    )
    middle = y + 4 + (row_height - 9) / 2
    pieces = [
        element("text", name, x=x_axis.start - 44, y=y + 16, text_anchor="end", class_="label"),
        element("rect", title, class_=f"speed-{word}", **bar),
        element("text", times(ratio), y=y + 16, class_=f"label value-{word}", **end),
    ]
    if row.spread:
        pieces.append(element("line", x1=low, x2=high, y1=middle, y2=middle, class_="whisker"))
    return pieces


def size_bars(sizes: Mapping[str, tuple[Number, str]], description: str) -> Markup:
    """Horizontal bars from zero, each a value with the text that stands at its end."""
    row_height, left = 26.0, _room_for(sizes, 216.0, beside=10.0)
    right, width = left + 404, left + 544
    largest = max(value for value, _ in sizes.values()) or 1.0
    axis = Axis(0, largest, left, right)
    pieces: list[Markup] = []
    for place, (name, (value, label)) in enumerate(sizes.items()):
        y, end = place * row_height, axis.position(value)
        pieces.append(element("text", name, x=left - 10, y=y + 17, text_anchor="end", class_="label"))
        pieces.append(element("rect", x=left, y=y + 5, width=max(1.0, end - left), height=row_height - 9, class_="bar"))
        pieces.append(element("text", label, x=end + 7, y=y + 17, class_="label"))
    return drawing(width, row_height * len(sizes) + 6, description, *pieces, min_width=620)


def _room_for(names: Iterable[str], usual: float, beside: float) -> float:
    """Where bars begin so that the longest name fits before them."""
    return max([usual, *(beside + _LETTER * len(name) for name in names)])


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
