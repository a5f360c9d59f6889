"""A process of its own for the pieces of the suite, so that a crash or a leak of one of them ends nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from types import TracebackType
from typing import Any

from vitslim.bench.suite import Piece, PieceResult, Status
from vitslim.pipeline.suite.measuring import Measure, measure_piece, serve
from vitslim.pipeline.suite.preset import Preset

_GRACE_SECONDS = 5.0


class Worker:
    """Measures one piece after the other in a child process, which is started anew after a crash.

    Args:
        measure: what the child calls; a function that it can import.
    """

    def __init__(self, preset: Preset, measure: Measure = measure_piece) -> None:
        self._preset = preset
        self._measure = measure
        # Not forked: neither CUDA nor torch's threads survive a fork.
        self._context = multiprocessing.get_context("spawn")
        self._process: Any = None
        self._connection: Any = None

    def run(self, piece: Piece, digest: str, seconds: float | None = None) -> PieceResult:
        """Measure a piece; a child that dies, or is not done after ``seconds``, becomes the piece's status."""
        began = time.perf_counter()
        self._start()
        try:
            self._connection.send((piece.model_dump(mode="json"), digest))
            if not self._connection.poll(seconds):
                self._stop(at_once=True)
                return self._lost(piece, digest, began, "too long", f"not done after {seconds:.0f} s")
            result = PieceResult.model_validate(self._connection.recv())
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(_GRACE_SECONDS)
            code = self._process.exitcode
            self._stop()
            return self._lost(piece, digest, began, "crashed", f"its process ended with exit code {code}")
        if result.status == "out of memory" or any(skip.out_of_memory for skip in result.skipped):
            # Fragments of what did not fit would stand in the next piece's way.
            self._stop()
        return result

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _start(self) -> None:
        if self._process is not None:
            return
        self._connection, theirs = self._context.Pipe()
        arguments = (theirs, self._preset.model_dump(mode="json"), self._measure)
        # No daemon: those may have no children, and compilations have.
        self._process = self._context.Process(target=serve, args=arguments)
        self._process.start()
        theirs.close()

    def _stop(self, *, at_once: bool = False) -> None:
        if self._process is None:
            return
        # The child ends when its end of the connection does; one that is busy is not waited for.
        self._connection.close()
        if not at_once:
            self._process.join(_GRACE_SECONDS)
        if self._process.exitcode != 0:
            end_group(self._process.pid)
            self._process.kill()
        self._process.join()
        self._process = self._connection = None

    def _lost(self, piece: Piece, digest: str, began: float, status: Status, reason: str) -> PieceResult:
        seconds = time.perf_counter() - began
        return PieceResult(piece=piece, digest=digest, status=status, reason=reason, seconds=seconds)


def end_group(leader: int) -> None:
    """End what a worker started and left behind, compilers say: they would hold on to the GPU's memory."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return  # nobody is left


class SameProcess:
    """Measures the pieces here, for a debugger."""

    def __init__(self, preset: Preset, measure: Measure = measure_piece) -> None:
        self._preset = preset
        self._measure = measure

    def run(self, piece: Piece, digest: str, seconds: float | None = None) -> PieceResult:
        """Measure a piece; it cannot be stopped, so ``seconds`` is not looked at."""
        return self._measure(piece, self._preset, digest)

    def __enter__(self) -> SameProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing is left open."""
