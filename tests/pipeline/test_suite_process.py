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


def act(case: str, told: Path, seconds: float | None, progress: ProgressCallback) -> dict[str, Any]:
    """Stands for the work with a case: ``case`` says how it ends."""
    progress(Progress("work", 1))
    child = subprocess.Popen(["sleep", "60"])
    write_json(told, [os.getpid(), child.pid])
    if case == "crash":
        os._exit(9)
    if case == "sleep":
        time.sleep(60)
    if case == "pause":
        raise PausedError
    if case == "absent":
        raise MissingDependencyError("no such thing")
    if case == "refuse":
        raise MemoryError("no more of it")
    return {"reason": f"{case} with {'no limit' if seconds is None else seconds}"}


def run(case: str, told: Path, seconds: float | None = None) -> tuple[dict[str, Any], list[Progress]]:
    seen: list[Progress] = []
    return run_in_child(partial(act, case, told), seconds, seen.append), seen


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


@pytest.mark.parametrize(
    ("case", "status", "reason"),
    [
        ("work", "measured", "work with no limit"),
        ("pause", "paused", None),
        ("absent", "unavailable", "MissingDependencyError: no such thing"),
        ("refuse", "out of memory", "MemoryError: no more of it"),
        ("crash", "crashed", "its process ended with exit code 9"),
    ],
)
def test_whatever_becomes_of_a_case_is_a_record_and_all_that_it_started_is_ended(
    case: str, status: str, reason: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_GRACE_SECONDS", 0.5)
    found, seen = run(case, tmp_path / "told")
    assert (found["status"], found.get("reason")) == (status, reason)
    assert [report.stage for report in seen] == ["work"]
    wait_until(lambda: all(map(is_over, read_json(tmp_path / "told"))))


def test_a_case_that_outlasts_the_time_is_stopped(tmp_path: Path) -> None:
    found, _ = run("sleep", tmp_path / "told", 0.01)
    assert (found["status"], found["reason"]) == ("too long", "not done after 0 s")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_case_ends_with_the_benchmark_that_a_signal_ended(number: signal.Signals, tmp_path: Path) -> None:
    told = tmp_path / "told"
    text = f"import {__name__} as own, pathlib; own.run('sleep', pathlib.Path({str(told)!r}))"
    with subprocess.Popen([sys.executable, "-c", text], cwd=Path(__file__).parents[2]) as benchmark:
        wait_until(told.exists, seconds=90)
        started = read_json(told)
        benchmark.send_signal(number)
    assert benchmark.returncode == -number
    wait_until(lambda: all(map(is_over, started)))
