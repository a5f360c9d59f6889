"""A curve of one figure over the steps of training."""

import math
from collections.abc import Sequence

from vitslim.report.axes import Axis, drawing, fit_axis, frame
from vitslim.report.markup import Markup, element


def step_curve(name: str, steps: Sequence[int], values: Sequence[float | None]) -> Markup | None:
    """The figure called ``name`` over the steps; None for fewer than two finite values. It breaks where one is not."""
    width, height = 480.0, 236.0
    points = [(step, value) for step, value in zip(steps, values, strict=True) if _is_drawable(value)]
    if len(points) < 2:
        return None
    finite = [value for _, value in points if value is not None]
    y_axis = fit_axis(finite, height - 44, 34, may_be_log=True)
    x_axis = Axis(min(steps), max(steps) if max(steps) > min(steps) else min(steps) + 1, 54, width - 14)
    pieces = frame(x_axis, y_axis, "step", f"{name}, logarithmic" if y_axis.is_log else name)
    pieces.append(element("path", d=_broken_path(steps, values, x_axis, y_axis), class_="curve"))
    (first_step, _), (last_step, _) = points[0], points[-1]
    end = {"cx": x_axis.position(last_step), "cy": y_axis.position(finite[-1])}
    title = element("title", f"step {last_step}: {finite[-1]:.4g}")
    pieces.append(element("circle", title, r=3.5, class_="curve-end", **end))
    description = f"{name}: {finite[0]:.4g} at step {first_step}, {finite[-1]:.4g} at step {last_step}"
    return drawing(width, height, description, *pieces)


def _broken_path(steps: Sequence[int], values: Sequence[float | None], x_axis: Axis, y_axis: Axis) -> str:
    commands: list[str] = []
    pen = "M"
    for step, value in zip(steps, values, strict=True):
        if value is None or not math.isfinite(value):
            pen = "M"
            continue
        # h0: a value with a gap on either side still leaves a dot, by the line's round cap.
        commands.append(f"{pen}{x_axis.position(step):.1f} {y_axis.position(value):.1f}" + ("h0" if pen == "M" else ""))
        pen = "L"
    return "".join(commands)


def _is_drawable(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
