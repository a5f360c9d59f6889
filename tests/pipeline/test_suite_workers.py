"""The processes that pieces are measured in: crashes, signals, time that is over, what they leave behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.test_suite_running import NAMES, WHOLE
from vitslim.bench.suite import Piece, PieceResult
from vitslim.files import read_json, write_json
from vitslim.pipeline.suite import Preset, run_suite


def crash_in_training(piece: Piece, preset: Preset, digest: str) -> PieceResult:
    """Stands for a library that ends the process."""
    if piece.backend == "train":
        os._exit(9)
    return PieceResult(piece=piece, digest=digest, status="measured", seconds=0.1)


def sleep_in_training(piece: Piece, preset: Preset, digest: str) -> PieceResult:
    """Stands for a compilation without end."""
    if piece.backend == "train":
        time.sleep(60)
    return PieceResult(piece=piece, digest=digest, status="measured", seconds=0.1)


def test_a_crash_is_a_record_and_the_next_piece_gets_a_new_process(tmp_path: Path) -> None:
    report = run_suite(tmp_path / "out", preset=WHOLE, measure=crash_in_training)
    assert [piece.status for piece in report.pieces] == ["measured", "crashed", "measured", "measured"]
    assert report.pieces[1].reason == "its process ended with exit code 9"


def is_over(process: int) -> bool:
    """Gone, or dead and not yet collected by whoever adopts orphans here."""
    state = Path(f"/proc/{process}/stat")
    try:
        return state.read_text().split()[2] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(happened: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert happened()


def leave_a_child(piece: Piece, preset: Preset, digest: str) -> PieceResult:
    """Stands for a compilation whose processes outlive the one that started them."""
    if piece.backend == "train":
        child = subprocess.Popen(["sleep", "60"])
        Path(os.environ["CHILD_FILE"]).write_text(str(child.pid))
        os._exit(9)
    return PieceResult(piece=piece, digest=digest, status="measured", seconds=0.1)


def test_what_a_lost_worker_started_is_ended_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHILD_FILE", str(tmp_path / "child"))
    preset = WHOLE.model_copy(update={"groups": WHOLE.groups[1:2]})
    run_suite(tmp_path / "out", preset=preset, measure=leave_a_child)
    wait_until(lambda: is_over(int((tmp_path / "child").read_text())))


def tell_and_sleep(piece: Piece, preset: Preset, digest: str) -> PieceResult:
    """Stands for a piece that takes long."""
    child = subprocess.Popen(["sleep", "60"])
    write_json(Path(os.environ["CHILD_FILE"]), [os.getpid(), child.pid])
    time.sleep(60)
    return PieceResult(piece=piece, digest=digest, status="measured", seconds=60.0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_ends_with_the_suite_that_a_signal_ended(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "child"
    monkeypatch.setenv("CHILD_FILE", str(told))
    module = tell_and_sleep.__module__
    call = f"own.run_suite({str(tmp_path / 'out')!r}, preset=own.WHOLE, measure=own.tell_and_sleep)"
    text = f"import {module} as own; {call}"
    with subprocess.Popen([sys.executable, "-c", text], cwd=Path(__file__).parents[2]) as suite:
        wait_until(told.exists, seconds=90)
        processes = read_json(told)
        suite.send_signal(number)
    assert suite.returncode == -number
    wait_until(lambda: all(map(is_over, processes)))


def test_a_piece_that_outlasts_the_time_is_stopped(tmp_path: Path) -> None:
    preset = WHOLE.model_copy(update={"groups": WHOLE.groups[1:3], "piece_seconds": 0.1})
    began = time.perf_counter()
    report = run_suite(tmp_path / "out", preset=preset, measure=sleep_in_training, minutes=0.05)
    assert time.perf_counter() - began < 40
    assert report.pieces[0].status == "too long"
    assert report.left == NAMES[1:3]
