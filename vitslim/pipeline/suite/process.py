"""A child process for a case of a benchmark, so that a crash or a leak ends nothing else."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from vitslim.bench.environment import environment
from vitslim.bench.errors import first_line, is_out_of_memory
from vitslim.errors import MissingDependencyError
from vitslim.progress import Progress, ProgressCallback

_GRACE_SECONDS = 5.0

Work = Callable[[float | None, ProgressCallback], dict[str, Any]]
"""What is done with a case: given the seconds left and whom to tell of progress, it gives fields of the outcome."""


class PausedError(Exception):
    """The time is over; the state is written and the next call goes on."""


def attempt(work: Work, seconds: float | None, progress: ProgressCallback) -> dict[str, Any]:
    """The fields of a case's outcome; whatever goes wrong becomes its status, never an exception."""
    try:
        found = {"status": "measured", **work(seconds, progress)}
    except PausedError:
        found = {"status": "paused"}
    except MissingDependencyError as error:
        found = {"status": "unavailable", "reason": first_line(error)}
    except Exception as error:  # a case that fails must not end the benchmark
        found = {"status": "out of memory" if is_out_of_memory(error) else "failed", "reason": first_line(error)}
    return {"environment": environment(), **found}


def run_in_child(work: Work, seconds: float | None, progress: ProgressCallback) -> dict[str, Any]:
    """``attempt`` in a new process; one that dies, or is not done after ``seconds``, becomes the case's status.

    Args:
        work: something that the child can import.
    """
    end = None if seconds is None else time.perf_counter() + max(1.0, seconds)
    # Not forked: neither CUDA nor torch's threads survive a fork.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    # No daemon: those may have no children, and compilations have.
    process = context.Process(target=_serve, args=(theirs, work, end))
    process.start()
    theirs.close()
    grace = 0.0
    try:
        while ours.poll(None if end is None else max(0.0, end - time.perf_counter())):
            message = ours.recv()
            if not isinstance(message, Progress):
                grace = _GRACE_SECONDS
                return message
            progress(message)
        return {"status": "too long", "reason": f"not done after {seconds:.0f} s"}
    except EOFError:
        process.join(_GRACE_SECONDS)
        return {"status": "crashed", "reason": f"its process ended with exit code {process.exitcode}"}
    finally:
        ours.close()
        _end(process, grace)


def _end(process: Any, grace_seconds: float) -> None:
    """End a child with all that it started: compilers left behind would hold on to the GPU's memory."""
    multiprocessing.connection.wait([process.sentinel], grace_seconds)
    try:
        os.killpg(process.pid, signal.SIGKILL)  # before it is waited for, which would set its number free
    except (ProcessLookupError, PermissionError):
        process.kill()  # it has no group yet
    process.join()


def _serve(connection: Any, work: Work, end: float | None) -> None:
    """The body of the child; ``end`` is by the clock that all processes share."""
    # A group of its own: the parent ends a child with all that it started, and Ctrl-C reaches the parent alone.
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # What libraries print must not mix with the command's own output.
    os.dup2(2, 1)

    def tell(report: Progress) -> None:
        connection.send(replace(report, metrics={**report.metrics}))  # a read-only mapping cannot be sent

    connection.send(attempt(work, None if end is None else end - time.perf_counter(), tell))
    connection.close()


def _end_with_parent() -> None:
    """End this process and what it started when its parent is gone, which a signal may end without a word."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a child process is ended with its parent"
    parent.join()
    os.killpg(0, signal.SIGKILL)
