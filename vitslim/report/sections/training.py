"""Section: how the student was trained."""

import math
from statistics import median
from typing import Any

from vitslim.report.commands import train_command
from vitslim.report.curve import step_curve
from vitslim.report.documents import LogLine
from vitslim.report.markup import Markup, element, figure, join, paragraph, table
from vitslim.report.numbers import ABSENT, digits, fixed, flatten, whole
from vitslim.report.parts import ReportParts
from vitslim.report.sections.absent import absent
from vitslim.report.training_log import TrainingLog

STAGE_NAMES = {"warm_start": "Warm start, layer by layer", "distill": "Distillation", "train": "Training"}
SHOWN_ELSEWHERE = frozenset({"stage", "evaluations", "step_losses_before", "step_losses_after"})


def training(parts: ReportParts) -> Markup:
    """Curves of every stage, a line of figures for each, and what the stages report at their end."""
    pieces = _log_pieces(parts.log) if parts.log else []
    pieces += _local_losses(parts.stages.get("warm_start"))
    for stage, figures in parts.stages.items():
        pieces += _last_figures(f"{STAGE_NAMES[stage]}: settings and result.", figures)
    if pieces:
        return join(pieces)
    return absent("No training log, the weights may be untrained", train_command(parts))


def _log_pieces(log: TrainingLog) -> list[Markup]:
    figures = [one for stage in log.stages() for one in _curve_figures(log, stage)]
    pieces = [element("div", *figures, class_="row two")] if figures else []
    if log.is_cut:
        pieces.append(paragraph("The last line of the log was cut short: training was interrupted.", class_="absent"))
    diverged = sum(line.loss is not None and not math.isfinite(line.loss) for line in log.lines)
    if diverged:
        note = (
            f"{diverged} logged {'loss was' if diverged == 1 else 'losses were'} not finite: training diverged there."
        )
        pieces.append(paragraph(element("strong", note, class_="bad")))
    rows = [_stage_row(stage, log.of(stage, "train")) for stage in log.stages() if log.of(stage, "train")]
    header = ("Stage", "Steps", "First loss", "Last loss", "Last learning rate", "Images per second, median")
    return [*pieces, table("The stages in the order they ran.", header, rows)] if rows else pieces


def _curve_figures(log: TrainingLog, stage: str) -> list[Markup]:
    lines, evaluations = log.of(stage, "train"), log.of(stage, "eval")
    curves = [
        ("", step_curve("loss", [line.step for line in lines], [line.loss for line in lines])),
        (
            ", accuracy",
            step_curve("top-1, 0 to 1", [one.step for one in evaluations], [one.top1 for one in evaluations]),
        ),
    ]
    name = STAGE_NAMES.get(stage, stage)
    return [figure(name + suffix, curve) for suffix, curve in curves if curve is not None]


def _stage_row(stage: str, lines: list[LogLine]) -> list[str]:
    losses = [line.loss for line in lines if line.loss is not None]
    rates = [line.lr for line in lines if line.lr is not None]
    speeds = [line.img_s for line in lines if line.img_s is not None and math.isfinite(line.img_s)]
    return [
        STAGE_NAMES.get(stage, stage),
        whole(lines[-1].step),
        digits(losses[0], 4) if losses else ABSENT,
        digits(losses[-1], 4) if losses else ABSENT,
        digits(rates[-1], 3) if rates else ABSENT,
        fixed(median(speeds), 1) if speeds else ABSENT,
    ]


def _local_losses(figures: dict[str, Any] | None) -> list[Markup]:
    """How well each new module imitates the dense model, before and after the warm start."""
    before, after = ((figures or {}).get(f"step_losses_{when}") for when in ("before", "after"))
    if not isinstance(before, dict) or not isinstance(after, dict):
        return []
    rows = [[f"Step {step}", digits(loss, 4), digits(after.get(step), 4)] for step, loss in before.items()]
    caption = "Layer-local imitation error on the same batches: 0 is perfect, 1 as bad as a constant."
    return [table(caption, ("Step", "Before warm start", "After"), rows)]


def _last_figures(title: str, figures: dict[str, Any] | None) -> list[Markup]:
    """What a stage reports at its end, without what stands on the page already and what was not set."""
    kept = {name: value for name, value in (figures or {}).items() if name not in SHOWN_ELSEWHERE}
    rows = [[name, value] for name, value in flatten(kept).items() if value != ABSENT]
    if not rows:
        return []
    return [element("div", table(title, ("Figure", "Value"), rows, text_columns=2), class_="facts")]
