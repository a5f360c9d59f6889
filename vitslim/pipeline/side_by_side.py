"""Several recipes at once, one process each.

A step of a small model does not fill several cores: on two of them, two trainings with a thread each took 60 % of the
time of one after the other with two threads (the built-in model, batch 64, bf16).
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

from vitslim.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from vitslim.recipe import Recipe

_POLL_SECONDS = 0.2
_reports: list[Any] = []  # in a worker: the queue to the process that started it


def run_side_by_side(recipes: Mapping[str, Recipe], root: Path, *, overwrite: bool, progress: ProgressCallback) -> None:
    """Run every recipe in its own folder ``root/name``, as many at a time as there are cores.

    Progress comes under the name of its recipe. The first failure ends what has not begun, and is raised once the runs
    under way have ended; they resume when it is called again.

    Raises:
        VitslimError: as ``run`` does.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, len(recipes))
    # Not forked: the threads of torch and of the terminal's bars do not survive a fork.
    context = multiprocessing.get_context("spawn")
    reports: Any = context.Queue()
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=_begin, initargs=(reports, cores // workers)
    ) as pool:
        runs = [pool.submit(_run, name, recipe, root / name, overwrite) for name, recipe in recipes.items()]
        try:
            _follow(runs, reports, progress)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    for one in runs:
        if not one.cancelled():
            one.result()


def _follow(runs: list[Future[None]], reports: Any, progress: ProgressCallback) -> None:
    """Pass on what the workers report until all are done, or one has failed."""
    is_over = False
    while not is_over:
        done, left = wait(runs, timeout=_POLL_SECONDS, return_when=FIRST_EXCEPTION)
        is_over = not left or any(one.exception() for one in done)
        try:
            while True:
                progress(reports.get_nowait())
        except Empty:
            pass


def _begin(reports: Any, threads: int) -> None:
    """Prepare a worker."""
    import torch

    _reports.append(reports)
    torch.set_num_threads(threads)


def _run(name: str, recipe: Recipe, folder: Path, overwrite: bool) -> None:
    from vitslim.pipeline.running import run

    def report(one: Progress) -> None:
        _reports[0].put(replace(one, stage=f"{name}: {one.stage}", metrics=dict(one.metrics)))

    run(recipe, folder, overwrite=overwrite, progress=report)
