"""Reading the logs that training stages leave behind."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vitslim.errors import CheckpointError

_UNNAMED_STAGE = "train"


class LogLine(BaseModel):
    """One line of a log.jsonl. A diverged loss is logged as it is, so infinity and NaN are taken here.

    Lines of event ``start`` or ``resume`` name the stage of the lines that follow.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    event: str = "train"
    stage: str = ""
    step: int
    loss: float | None = None
    lr: float | None = None
    images_per_second: float | None = Field(default=None, validation_alias="img_per_s")
    top1: float | None = None


@dataclass(frozen=True)
class TrainingLog:
    """The lines of all stages in the order they were written, each with the name of its stage.

    ``is_cut``: whether a last line was cut short, which is how an interrupted run leaves its log.
    """

    lines: Sequence[LogLine]
    is_cut: bool = False

    def stages(self) -> list[str]:
        """Every stage once, in the order they ran."""
        return list(dict.fromkeys(line.stage for line in self.lines))

    def of(self, stage: str, event: str) -> list[LogLine]:
        """One stage's lines of one kind by step; a step repeated after a resume counts once, as it ran last."""
        latest = {line.step: line for line in self.lines if line.stage == stage and line.event == event}
        return [latest[step] for step in sorted(latest)]


def read_training_log(folder: Path) -> TrainingLog | None:
    """Read ``log.jsonl`` of ``folder`` and of the folders directly in it; None where there is none.

    Raises:
        CheckpointError: a line is not what a stage writes; a last line that was cut short is no error.
    """
    inside = sorted(folder.glob("*/log.jsonl"), key=lambda path: path.stat().st_mtime)
    paths = [*inside, *folder.glob("log.jsonl")]
    logs = [_read_one(path, _UNNAMED_STAGE if path.parent == folder else path.parent.name) for path in paths]
    if not logs:
        return None
    return TrainingLog([line for log in logs for line in log.lines], any(log.is_cut for log in logs))


def _read_one(path: Path, stage: str) -> TrainingLog:
    try:
        *complete, rest = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not readable text ({error})") from None
    lines: list[LogLine] = []
    for number, text in enumerate(complete, start=1):
        if text.strip():
            line = _read_line(text, f"{path}, line {number}")
            stage = line.stage or stage
            lines.append(line.model_copy(update={"stage": stage}))
    return TrainingLog(lines, bool(rest.strip()))


def _read_line(text: str, origin: str) -> LogLine:
    try:
        return LogLine.model_validate_json(text)
    except ValidationError as error:
        details = error.errors()[0]
        where = ".".join(map(str, details["loc"]))
        raise CheckpointError(f"{origin}: {where} {details['msg']}; remove the line or train again") from None
