"""Section: how the student was trained."""

import math
from statistics import median

from vitslim.report.charts import step_curve
from vitslim.report.commands import command
from vitslim.report.content import Element, Note, Table, absent, facts, pictures
from vitslim.report.drawing import Picture
from vitslim.report.numbers import ABSENT, digits, fixed, flatten, whole
from vitslim.report.parts import ReportParts
from vitslim.report.training_log import LogLine, TrainingLog
from vitslim.train import TrainResult

_NAMES = {"warm_start": "Warm start, layer by layer", "distill": "Distillation", "train": "Training"}
_SHOWN_ELSEWHERE = {"stage", "evaluations", "step_losses_before", "step_losses_after"}


def training(parts: ReportParts) -> list[Element]:
    """Curves of every stage, a line of figures for each, and what the stages report at their end."""
    elements = _log_elements(parts.log) if parts.log else []
    for stage, result in parts.stages.items():
        elements += [*_local_losses(result), *_last_figures(f"{_NAMES[stage]}: settings and result.", result)]
    return elements or [absent("No training log, the weights may be untrained", command(parts, "train"))]


def _log_elements(log: TrainingLog) -> list[Element]:
    elements = pictures(*(curve for stage in log.stages() for curve in _curves(log, stage)))
    if log.is_cut:
        elements.append(Note("The last line of the log was cut short: training was interrupted.", "absent"))
    diverged = sum(line.loss is not None and not math.isfinite(line.loss) for line in log.lines)
    if diverged:
        were = "loss was" if diverged == 1 else "losses were"
        elements.append(Note(f"{diverged} logged {were} not finite: training diverged there.", "bad"))
    rows = [_stage_row(stage, lines) for stage in log.stages() if (lines := log.of(stage, "train"))]
    header = ("Stage", "Steps", "First loss", "Last loss", "Last learning rate", "Images per second, median")
    return [*elements, *([Table("The stages in the order they ran.", header, rows)] if rows else [])]


def _curves(log: TrainingLog, stage: str) -> list[Picture | None]:
    name = _NAMES.get(stage, stage)
    lines, evaluated = log.of(stage, "train"), log.of(stage, "eval")
    return [
        step_curve(f"{name}: loss", "loss", [line.step for line in lines], [line.loss for line in lines]),
        step_curve(
            f"{name}: accuracy", "top-1, 0 to 1", [one.step for one in evaluated], [one.top1 for one in evaluated]
        ),
    ]


def _stage_row(stage: str, lines: list[LogLine]) -> list[str]:
    losses = [line.loss for line in lines if line.loss is not None]
    rates = [line.lr for line in lines if line.lr is not None]
    speeds = [line.images_per_second for line in lines if line.images_per_second is not None]
    return [
        _NAMES.get(stage, stage),
        whole(lines[-1].step),
        digits(losses[0], 4) if losses else ABSENT,
        digits(losses[-1], 4) if losses else ABSENT,
        digits(rates[-1], 3) if rates else ABSENT,
        fixed(median(speeds), 1) if speeds else ABSENT,
    ]


def _local_losses(result: TrainResult) -> list[Element]:
    """How well each new module imitates the dense model, before and after the warm start."""
    before, after = result.step_losses_before, result.step_losses_after
    if not before or after is None:
        return []
    rows = [[f"Step {step}", digits(loss, 4), digits(after.get(step), 4)] for step, loss in before.items()]
    caption = "Layer-local imitation error on the same batches: 0 is perfect, 1 as bad as a constant."
    return [Table(caption, ("Step", "Before warm start", "After"), rows)]


def _last_figures(title: str, result: TrainResult) -> list[Element]:
    """What a stage reports at its end, without what stands on the page already and what was not set."""
    figures = flatten(result.model_dump(mode="json", exclude=_SHOWN_ELSEWHERE))
    return facts(title, {name: value for name, value in figures.items() if value != ABSENT}, "folded")
