"""Reading the logs that training stages leave behind."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from vitslim.errors import CheckpointError
from vitslim.report.documents import LogLine

UNNAMED_STAGE = "train"


@dataclass(frozen=True)
class TrainingLog:
    """The lines of all stages, each with the name of its stage.

    Args:
        lines: in the order they were written.
        is_cut: whether a last line was cut short, which is how an interrupted run leaves its log.
    """

    lines: Sequence[LogLine]
    is_cut: bool = False

    def stages(self) -> list[str]:
        """Every stage once, in the order they ran."""
        return list(dict.fromkeys(line.stage or UNNAMED_STAGE for line in self.lines))

    def of(self, stage: str, event: str) -> list[LogLine]:
        """One stage's lines of one kind by step; a step repeated after a resume counts once, as it ran last."""
        latest = {line.step: line for line in self.lines if line.stage == stage and line.event == event}
        return [latest[step] for step in sorted(latest)]


def read_training_log(folder: Path) -> TrainingLog | None:
    """Read ``log.jsonl`` of ``folder`` and of the folders directly in it; None where there is none.

    Raises:
        CheckpointError: a line is not what a stage writes; a last line that was cut short is no error.
    """
    paths = [*sorted(folder.glob("*/log.jsonl"), key=_age), *folder.glob("log.jsonl")]
    logs = [_read_one(path, UNNAMED_STAGE if path.parent == folder else path.parent.name) for path in paths]
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
        if not text.strip():
            continue
        line = _read_line(text, f"{path}, line {number}")
        stage = line.stage or stage
        lines.append(line.model_copy(update={"stage": stage}))
    return TrainingLog(lines, bool(rest.strip()))


def _read_line(text: str, origin: str) -> LogLine:
    try:
        return LogLine.model_validate(json.loads(text))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "the line"
        raise CheckpointError(f"{origin}: {where}: {fault['msg']}; remove the line or train again") from None
    except ValueError as error:
        raise CheckpointError(f"{origin} is not JSON ({error}); remove the line or train again") from None


def _age(path: Path) -> float:
    return path.stat().st_mtime
