"""The process that a case runs in: crashes, signals, time that is over, what it leaves behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from vitslim.errors import MissingDependencyError
from vitslim.files import read_json, write_json
from vitslim.pipeline.suite import process
from vitslim.pipeline.suite.process import PausedError, run_in_child
from vitslim.progress import Progress, ProgressCallback


def act(case: str, note: Path, seconds: float | None, progress: ProgressCallback) -> dict[str, Any]:
    """Stands for the work with a case: ``case`` says how it ends."""
    progress(Progress("work", 1))
    child = subprocess.Popen(["sleep", "60"])
    write_json(note, [os.getpid(), child.pid])
    if case == "crash":
        os._exit(9)
    if case == "sleep":
        time.sleep(60)
    return {"reason": f"{case} with {'no limit' if seconds is None else seconds}"}


def run(case: str, note: Path, seconds: float | None = None) -> tuple[dict[str, Any], list[Progress]]:
    seen: list[Progress] = []
    return run_in_child(partial(act, case, note), seconds, seen.append), seen


def is_over(number: int) -> bool:
    """Gone, or dead and not yet collected by whoever adopts orphans here."""
    state = Path(f"/proc/{number}/stat")
    try:
        return state.read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(happened: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert happened()


def test_a_case_that_crashes_is_a_record_and_all_that_it_started_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_GRACE_SECONDS", 0.5)
    found, seen = run("crash", tmp_path / "note")
    assert (found["status"], found["reason"]) == ("crashed", "its process ended with exit code 9")
    assert [report.stage for report in seen] == ["work"]
    wait_until(lambda: all(map(is_over, read_json(tmp_path / "note"))))


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (PausedError(), "paused", None),
        (MissingDependencyError("no such thing"), "unavailable", "MissingDependencyError: no such thing"),
        (MemoryError("no more of it"), "out of memory", "MemoryError: no more of it"),
        (ValueError("no use"), "failed", "ValueError: no use"),
    ],
)
def test_whatever_a_case_raises_is_a_record(error: Exception, status: str, reason: str | None) -> None:
    def fail(seconds: float | None, progress: ProgressCallback) -> dict[str, Any]:
        raise error

    found = process.attempt(fail, None, lambda one: None)
    assert (found["status"], found.get("reason")) == (status, reason)


def test_a_case_that_outlasts_the_time_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_GRACE_SECONDS", 0.5)
    found, _ = run("sleep", tmp_path / "note", 0.01)
    assert (found["status"], found["reason"]) == ("too long", "not done after 0 s")


# Both are ended before Python hears of it, but SIGTERM can be caught.
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_case_ends_with_the_benchmark_that_a_signal_ended(number: signal.Signals, tmp_path: Path) -> None:
    note = tmp_path / "note"
    text = f"import {__name__} as own, pathlib; own.run('sleep', pathlib.Path({str(note)!r}))"
    with subprocess.Popen([sys.executable, "-c", text], cwd=Path(__file__).parents[2]) as benchmark:
        wait_until(note.exists, seconds=90)
        started = read_json(note)
        benchmark.send_signal(number)
    assert benchmark.returncode == -number
    wait_until(lambda: all(map(is_over, started)))
