"""Turning values into positions on a drawing, with ticks at round numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitslim.report.markup import Markup, element
from vitslim.report.numbers import Number

# A loss that falls further than this is unreadable on a linear axis.
LOG_FROM_RATIO = 20


@dataclass(frozen=True)
class Axis:
    """Values from ``low`` to ``high`` laid on pixels from ``start`` to ``end``."""

    low: Number
    high: Number
    start: Number
    end: Number
    is_log: bool = False

    def position(self, value: Number) -> float:
        """The pixel of a value; outside the range it stays on the border."""
        low, high, here = (_log(v) if self.is_log else v for v in (self.low, self.high, value))
        share = min(1.0, max(0.0, (here - low) / (high - low)))
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[Number]:
        """Round values within the range."""
        if self.is_log:
            exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            decades = [10.0**exponent for exponent in exponents if self.low <= 10.0**exponent <= self.high]
            return decades if len(decades) > 1 else [self.low, self.high]
        step = tick_step(self.high - self.low)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, 12) for index in range(first, last + 1)]


def tick_step(span: Number, wanted: int = 5) -> float:
    """The round step (1, 2 or 5 times a power of ten) that cuts ``span`` into about ``wanted`` pieces."""
    rough = span / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough - 1e-12)


def fit_axis(values: Sequence[Number], start: Number, end: Number, *, may_be_log: bool = False) -> Axis:
    """An axis that shows all values with a little air, logarithmic where positive values span too much."""
    low, high = min(values), max(values)
    if may_be_log and low > 0 and high / low > LOG_FROM_RATIO:
        return Axis(low / 1.2, high * 1.2, start, end, is_log=True)
    # All values alike: any span will do that keeps them off the border.
    air = 0.08 * (high - low) or max(abs(high) * 0.05, 0.01)
    return Axis(low - air, high + air, start, end)


def tick_label(value: Number) -> str:
    """A tick's value, short."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        return f"{value:.0e}".replace("-0", "-").replace("+0", "").replace("-", "−")
    return f"{value:.6g}".replace("-", "−")


def frame(x_axis: Axis, y_axis: Axis, x_name: str, y_name: str) -> list[Markup]:
    """Grid lines, tick labels and the names of both axes."""
    return [*value_frame(x_axis.start, x_axis.end, y_axis, x_name, y_name), *_x_ticks(x_axis, y_axis.start)]


def value_frame(left: Number, right: Number, y_axis: Axis, x_name: str, y_name: str) -> list[Markup]:
    """The same without ticks along the bottom, for drawings that label their own places there."""
    bottom, top = y_axis.start, y_axis.end
    pieces: list[Markup] = []
    for tick in y_axis.ticks():
        y = y_axis.position(tick)
        pieces.append(element("line", x1=left, x2=right, y1=y, y2=y, class_="grid"))
        pieces.append(element("text", tick_label(tick), x=left - 6, y=y + 3.5, text_anchor="end", class_="tick"))
    pieces.append(element("line", x1=left, x2=right, y1=bottom, y2=bottom, class_="axis"))
    pieces.append(element("text", x_name, x=(left + right) / 2, y=bottom + 33, text_anchor="middle", class_="name"))
    pieces.append(element("text", y_name, x=left, y=top - 10, class_="name"))
    return pieces


def _x_ticks(axis: Axis, bottom: Number) -> list[Markup]:
    pieces: list[Markup] = []
    for tick in axis.ticks():
        x = axis.position(tick)
        pieces.append(element("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
        pieces.append(element("text", tick_label(tick), x=x, y=bottom + 16, text_anchor="middle", class_="tick"))
    return pieces


def drawing(width: Number, height: Number, description: str, *pieces: Markup) -> Markup:
    """An SVG picture with the sentence that stands for it where it cannot be seen."""
    return element(
        "svg",
        *pieces,
        viewBox=f"0 0 {width:g} {height:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        role="img",
        aria_label=description,
    )


def _log(value: Number) -> float:
    return math.log10(max(value, 1e-30))
