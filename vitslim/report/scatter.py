"""Accuracy against speed: one point per model, with the front of those that no other beats in both."""

from collections.abc import Sequence
from dataclasses import dataclass

from vitslim.report.axes import Axis, drawing, fit_axis, frame
from vitslim.report.markup import Markup, element
from vitslim.report.numbers import percent, times

LABEL_HEIGHT = 14.0
# Average advance of a character of a label, at its larger size on narrow pages; only tells which labels would collide.
CHARACTER_WIDTH = 7.4


@dataclass(frozen=True)
class Point:
    """One model in one setting."""

    name: str
    speedup: float
    top1: float
    latency_ms: float
    is_dense: bool = False


def accuracy_speed_scatter(points: Sequence[Point], description: str) -> Markup:
    """Speed ratio against dense to the right, top-1 accuracy upwards; the slower side is shaded."""
    width, height = 480.0, 330.0
    x_axis = fit_axis([*(point.speedup for point in points), 0.9, 1.1], 46, width - 14)
    y_axis = fit_axis([100 * point.top1 for point in points], height - 44, 36)
    one = x_axis.position(1)
    pieces = [element("rect", x=46.0, y=36.0, width=one - 46, height=height - 80, class_="slower-side")]
    pieces += frame(x_axis, y_axis, "speed against dense, fused attention (×)", "top-1, %")
    pieces.append(element("line", x1=one, x2=one, y1=36.0, y2=height - 44, class_="baseline"))
    pieces.append(element("path", d=_front_path(pareto_front(points), x_axis, y_axis), class_="front"))
    pieces += _labels(points, x_axis, y_axis)
    pieces += [_dot(point, x_axis, y_axis) for point in points]
    return drawing(width, height, description, *pieces)


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in one figure without losing in the other, fastest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda one: (-one.speedup, -one.top1)):
        if not front or point.top1 > front[-1].top1:
            front.append(point)
    return front


def _front_path(front: Sequence[Point], x_axis: Axis, y_axis: Axis) -> str:
    """Steps, since nothing was measured between two points."""
    start = front[0]
    commands = [f"M{x_axis.position(start.speedup):.1f} {y_axis.start:.1f}"]
    for point in front:
        commands.append(f"V{y_axis.position(100 * point.top1):.1f}")
        following = front.index(point) + 1
        if following < len(front):
            commands.append(f"H{x_axis.position(front[following].speedup):.1f}")
    return "".join([*commands, f"H{x_axis.start:.1f}"])


def _dot(point: Point, x_axis: Axis, y_axis: Axis) -> Markup:
    facts = f"{point.name}: {percent(point.top1)} top-1, {times(point.speedup)}, {point.latency_ms:.2f} ms"
    x, y = x_axis.position(point.speedup), y_axis.position(100 * point.top1)
    shade = "point-dense" if point.is_dense else "point"
    return element("circle", element("title", facts), cx=x, cy=y, r=5.5, class_=shade)


def _labels(points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> list[Markup]:
    """Names beside the points, moved where two would overlap, then tied to their point by a thin line."""
    # A dot counts as a thin piece of text at its height, so that no name is written over it.
    placed = [
        (y_axis.position(100 * point.top1) + 4, x - 6, x + 6)
        for point in points
        for x in [x_axis.position(point.speedup)]
    ]
    pieces: list[Markup] = []
    for point in sorted(points, key=lambda one: -one.top1):
        x, y = x_axis.position(point.speedup), y_axis.position(100 * point.top1)
        text = f"{point.name}, {point.latency_ms:.2f} ms"
        length = CHARACTER_WIDTH * len(text)
        sides = [start for start in (x + 10, x - 10 - length) if start >= 2 and start + length <= x_axis.end + 10]
        left, label_y = _free_place(y + 4, length, sides or [2.0], placed, y_axis)
        placed.append((label_y, left, left + length))
        to_left = left < x
        edge = left + length if to_left else left
        if abs(label_y - y - 4) > 1:
            pieces.append(element("line", x1=x, y1=y, x2=edge, y2=label_y - 4, class_="leader"))
        anchor = "end" if to_left else "start"
        pieces.append(element("text", text, x=edge, y=label_y, text_anchor=anchor, class_="label haloed"))
    return pieces


def _free_place(
    wanted: float, length: float, sides: Sequence[float], placed: Sequence[tuple[float, float, float]], y_axis: Axis
) -> tuple[float, float]:
    """The place of a label nearest to a height, on either side of its point, at which nothing stands yet."""
    steps = range(2 * round(abs(y_axis.start - y_axis.end) / LABEL_HEIGHT))
    offsets = [(step + 1) // 2 * LABEL_HEIGHT * (1 if step % 2 else -1) for step in steps]
    heights = [wanted + offset for offset in offsets if y_axis.end < wanted + offset < y_axis.start or not offset]
    free = (
        (left, height)
        for height in heights
        for left in sides
        if not any(start < left + length and left < end and abs(height - y) < LABEL_HEIGHT for y, start, end in placed)
    )
    return next(free, (sides[0], wanted))
