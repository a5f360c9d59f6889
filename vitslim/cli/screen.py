"""What a person sees while something runs: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from vitslim.progress import Progress

_LOG_EVERY_SECONDS = 10.0
_LOG_WIDTH = 160
_STATES = ("begun", "done", "done before")
_SHOWN = ("loss", "img_per_s", "lr", "latency_ms")


def print_json(document: Any) -> None:
    """The one JSON document of a command, on stdout."""
    sys.stdout.write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def say(message: str, *, style: str = "") -> None:
    """One line for a person, on stderr."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(message, style=style, markup=False)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table for a person, on stdout; without names the columns have no header."""
    table = Table(header_style="bold", box=None, pad_edge=False, show_header=any(columns))
    numeric = [all(_is_number(row[index]) for row in rows) for index in range(len(columns))]
    for name, right in zip(columns, numeric, strict=True):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    for row in rows:
        # As text: what stands in square brackets is no markup.
        table.add_row(*(Text(cell) for cell in row))
    # A log or a pipe has no width of its own; wide tables are not to be cut there.
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=_LOG_WIDTH)
    if title:
        console.print(f"\n{title}", style="bold", markup=False)
    with console.capture() as written:
        console.print(table)
    sys.stdout.write("".join(line.rstrip() + "\n" for line in written.get().splitlines()))


def print_metrics(metrics: Mapping[str, Any]) -> None:
    """Accuracy of several models, by the name of their rows."""
    rows = [
        (
            name.replace("_", " "),
            *(_percent(row.get(key)) for key in ("top1", "top5", "agreement")),
            str(row["images"]),
        )
        for name, row in metrics.items()
    ]
    if rows:
        print_table("accuracy", ("model", "top-1", "top-5", "agreement with the teacher", "images"), rows)
        # All of them were measured on the same images.
        say_skipped(next(iter(metrics.values())), "held-out")


def say_skipped(result: Mapping[str, Any], kind: str) -> None:
    """How many images of a kind (training, held-out) could not be read, where a result counts some."""
    count, names = result.get("corrupt", 0), ", ".join(result.get("examples", ()))
    if count == 1:
        say(f"1 {kind} image could not be read and was skipped: {names}", style="yellow")
    elif count:
        say(f"{count} {kind} images could not be read and were skipped, among them {names}", style="yellow")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


class Screen:
    """Shows the reports of long-running work; use it as a context manager and pass it as ``progress``."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._started: dict[str, tuple[float, int]] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._bars = Bars(
                TextColumn("{task.description:<22}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TextColumn("{task.fields[unit]}  {task.fields[figures]}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def __call__(self, report: Progress) -> None:
        figures = "  ".join(f"{name} {report.metrics[name]:.4g}" for name in _SHOWN if name in report.metrics)
        if self._bars is None:
            self._log(report, figures)
            return
        if report.stage not in self._tasks:
            self._tasks[report.stage] = self._bars.add_task(
                report.stage, total=report.total, unit=report.unit, figures=""
            )
        task = self._tasks[report.stage]
        self._bars.update(task, completed=report.done, total=report.total, unit=report.unit, figures=figures)

    def _log(self, report: Progress, figures: str) -> None:
        now = time.monotonic()
        if report.unit == "begun":
            self._started.pop(report.stage, None)
        begun, before = self._started.setdefault(report.stage, (now, report.done))
        ended = report.total is not None and report.done >= report.total
        if not ended and now - self._said.get(report.stage, begun - _LOG_EVERY_SECONDS) < _LOG_EVERY_SECONDS:
            return
        self._said[report.stage] = now
        of = "" if report.total is None else f"/{report.total}"
        # A stage that counts nothing says in its unit where it stands.
        count = report.unit if report.unit in _STATES else f"{report.done}{of} {report.unit}"
        if not ended and report.total is not None and report.done > before:
            left = (now - begun) / (report.done - before) * (report.total - report.done)
            figures = f"{duration(left)} left  {figures}"
        say(f"[{now - begun:6.1f} s] {report.stage:<22} {count}  {figures}".rstrip())


def duration(seconds: float) -> str:
    """About how long something takes."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def _is_number(text: str) -> bool:
    head = text.strip().split(" ")[0].rstrip("%xM")
    return head in ("", "-") or head.replace(".", "", 1).replace("-", "", 1).replace("+", "", 1).isdigit()
