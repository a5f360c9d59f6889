"""The written record of a run: one JSON line per event, and the same numbers for tensorboard."""

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitslim import files
from vitslim.errors import MissingDependencyError

LOG_FILE = "log.jsonl"


class RunLog:
    """Appends events to ``folder/log.jsonl``; without a folder it keeps silent."""

    def __init__(self, folder: Path | None, *, resumed_step: int | None = None, tensorboard: bool = False) -> None:
        """Open the record; a new run starts it anew, a resumed one loses the steps that will be made again."""
        self._path = None if folder is None else folder / LOG_FILE
        self._board = _open_board(folder, resumed_step) if folder is not None and tensorboard else None
        if self._path is not None:
            files.write_text(self._path, _lines_up_to(self._path, resumed_step))

    def write(self, event: str, step: int, /, **values: Any) -> None:
        """Add one event. Numbers that JSON cannot hold (NaN, infinity) are written as text."""
        if self._path is None:
            return
        record = {"event": event, "step": step, **values}
        with self._path.open("a") as log:
            log.write(json.dumps(_plain(record), allow_nan=False) + "\n")
        if self._board is not None:
            for name, value in _numbers(values):
                self._board.add_scalar(f"{event}/{name}", value, step)

    def close(self) -> None:
        """Write out what tensorboard still holds."""
        if self._board is not None:
            self._board.close()


class Window:
    """Means and speed over the steps since the last line of the log."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._steps, self._images, self._seconds = 0, 0, 0.0
        self._clock = time.perf_counter()

    def add(self, losses: Mapping[str, float], images: int) -> None:
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        now = time.perf_counter()
        self._seconds += now - self._clock
        self._clock = now
        self._steps += 1
        self._images += images

    def restart_clock(self) -> None:
        """Leave out the time since the last step: it went into something else."""
        self._clock = time.perf_counter()

    def close(self) -> tuple[dict[str, float], float]:
        """Mean parts of the loss, images per second."""
        self.last = {name: value / self._steps for name, value in self._sums.items()}
        speed = self._images / max(self._seconds, 1e-9)
        self._sums, self._steps, self._images, self._seconds = {}, 0, 0, 0.0
        return self.last, speed


def _open_board(folder: Path, resumed_step: int | None) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingDependencyError(
            "tensorboard=True needs tensorboard: pip install 'vitslim[train]', or leave it out "
            "(--set distill.tensorboard=false, tensorboard=False)"
        ) from None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=resumed_step)


def _lines_up_to(path: Path, step: int | None) -> str:
    if step is None or not path.exists():
        return ""
    kept: list[str] = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):  # the line that was being written when the run was cut off
            continue
    return "".join(kept)


def _numbers(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            found += _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((prefix + name, float(value)))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else str(value)
    return value
