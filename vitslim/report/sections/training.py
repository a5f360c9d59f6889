"""Section: how the student was trained."""

import math
from statistics import median
from typing import Any

from vitslim.report.charts import loss_curve
from vitslim.report.documents import LogLine
from vitslim.report.markup import Markup, element, figure, join, paragraph, table
from vitslim.report.numbers import ABSENT, fixed, flatten, plain, whole
from vitslim.report.parts import ReportParts
from vitslim.report.sections.absent import absent

STAGE_NAMES = {"warm_start": "Warm start, layer by layer", "distill": "Distillation", "train": "Training"}


def training(parts: ReportParts) -> Markup:
    """Loss curves of every stage, a line of figures for each, and the final figures that the stages wrote."""
    pieces = _log_pieces(parts.log, parts.log_is_cut) if parts.log else []
    if parts.metrics:
        pieces += _last_figures("Warm start, as it ended", parts.metrics.warm_start)
        pieces += _last_figures("Distillation, as it ended", parts.metrics.distill)
    return join(pieces) if pieces else absent("No training log, the weights may be untrained", "vitslim train …")


def stages_of(log: list[LogLine]) -> dict[str, list[LogLine]]:
    """The lines of every stage by step; a step that was repeated after a resume counts once, as run last."""
    latest: dict[str, dict[int, LogLine]] = {}
    for line in log:
        latest.setdefault(line.stage, {})[line.step] = line
    return {stage: [lines[step] for step in sorted(lines)] for stage, lines in latest.items()}


def _log_pieces(log: list[LogLine], log_is_cut: bool) -> list[Markup]:
    stages = stages_of(log)
    figures = [one for stage, lines in stages.items() if (one := _curve_figure(stage, lines))]
    pieces = [element("div", *figures, class_="row two")] if figures else []
    if log_is_cut:
        pieces.append(paragraph("The last line of the log was cut short: training was interrupted.", class_="absent"))
    diverged = sum(line.loss is not None and not math.isfinite(line.loss) for line in log)
    if diverged:
        note = f"{diverged} logged losses were not finite: training diverged there."
        pieces.append(paragraph(element("span", note, class_="bad")))
    header = ("Stage", "Steps", "First loss", "Last loss", "Last learning rate", "Images per second, median")
    rows = [_stage_row(stage, lines) for stage, lines in stages.items()]
    return [*pieces, table("The stages in the order they ran.", header, rows)]


def _curve_figure(stage: str, lines: list[LogLine]) -> Markup | None:
    losses = [line.loss for line in lines]
    curve = loss_curve(stage, [line.step for line in lines], losses)
    return figure(STAGE_NAMES.get(stage, stage), curve) if curve else None


def _stage_row(stage: str, lines: list[LogLine]) -> list[str]:
    losses = [line.loss for line in lines if line.loss is not None]
    rates = [line.lr for line in lines if line.lr is not None]
    speeds = [line.img_s for line in lines if line.img_s is not None and math.isfinite(line.img_s)]
    return [
        STAGE_NAMES.get(stage, stage),
        whole(lines[-1].step),
        plain(float(f"{losses[0]:.4g}")) if losses else ABSENT,
        plain(float(f"{losses[-1]:.4g}")) if losses else ABSENT,
        plain(float(f"{rates[-1]:.3g}")) if rates else ABSENT,
        fixed(median(speeds), 1) if speeds else ABSENT,
    ]


def _last_figures(title: str, figures: dict[str, Any] | None) -> list[Markup]:
    if not figures:
        return []
    rows = [[name, value] for name, value in flatten(figures).items()]
    return [element("div", table(title, ("Figure", "Value"), rows, text_columns=2), class_="facts")]
