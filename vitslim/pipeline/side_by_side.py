"""Several recipes at once, one process each.

A step of a small model does not fill several cores: on two of them, two trainings with a thread each took 60 % of the
time of one after the other with two threads (the built-in model, batch 64, bf16).
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any

import torch

from vitslim.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from vitslim.recipe import Recipe

_POLL_SECONDS = 0.2
_reports: list[Any] = []  # in a worker: the queue to the process that started it


def run_side_by_side(
    recipes: Mapping[str, Recipe], root: Path, *, overwrite: bool, progress: ProgressCallback, ray: str | None = None
) -> None:
    """Run every recipe in its own folder ``root/name``, as many at a time as there are cores, or GPUs for those on one.

    A recipe for ``cuda`` gets the next GPU that is free, one for ``cuda:1`` stays there. Progress comes under the name
    of its recipe. The first failure ends what has not begun, and is raised once the runs under way have ended; they
    resume when it is called again.

    Args:
        ray: address of a Ray cluster that does it instead; see ``run_on_cluster``.

    Raises:
        VitslimError: as ``run`` does.
    """
    if ray is not None:
        from vitslim.pipeline.ray_cluster import run_on_cluster

        run_on_cluster(recipes, root, ray, overwrite=overwrite, progress=progress)
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    lanes = _lanes(recipes, cores, torch.cuda.device_count())
    processes = sum(len(gpus) for gpus in lanes.values())
    threads = max(1, cores // max(1, processes))
    # Not forked: the threads of torch and of the terminal's bars do not survive a fork.
    context = multiprocessing.get_context("spawn")
    reports: Any = context.Queue()
    with ExitStack() as stack:
        pools: dict[str, ProcessPoolExecutor] = {}
        for device, gpus in lanes.items():
            free: Any = context.Queue()
            for gpu in gpus:
                free.put(gpu)
            pool = ProcessPoolExecutor(
                len(gpus), mp_context=context, initializer=_begin, initargs=(reports, threads, free)
            )
            pools[device] = stack.enter_context(pool)
        runs = [
            pools[recipe.device].submit(_run, name, recipe, root / name, overwrite) for name, recipe in recipes.items()
        ]
        try:
            _follow(runs, reports, progress)
        except BaseException:
            for pool in pools.values():
                pool.shutdown(wait=False, cancel_futures=True)
            raise
    _pass_on(reports, progress)
    for one in runs:
        if not one.cancelled():
            one.result()


def _lanes(recipes: Mapping[str, Recipe], cores: int, gpus: int) -> dict[str, list[int | None]]:
    """For each device that recipes name, the GPU of every process that works there; ``None``: what the recipe says."""
    wanted = Counter(recipe.device for recipe in recipes.values())
    lanes: dict[str, list[int | None]] = {}
    for device, count in wanted.items():
        if device == "cuda":
            lanes[device] = list(range(min(gpus, count))) or [None]
        else:
            lanes[device] = [None] * (1 if device.startswith("cuda") else min(cores, count))
    return lanes


def _follow(runs: list[Future[None]], reports: Any, progress: ProgressCallback) -> None:
    """Pass on what the workers report until all have ended; after a failure nothing more begins."""
    left = set(runs)
    while left:
        done, left = wait(runs, timeout=_POLL_SECONDS)
        if any(not one.cancelled() and one.exception() for one in done):
            for one in left:
                one.cancel()
        _pass_on(reports, progress)


def _pass_on(reports: Any, progress: ProgressCallback) -> None:
    with suppress(Empty):
        while True:
            progress(reports.get_nowait())


def _begin(reports: Any, threads: int, free: Any) -> None:
    """Prepare a worker: its threads, and the GPU that ``cuda`` means in it."""
    _reports.append(reports)
    torch.set_num_threads(threads)
    gpu = free.get()
    if gpu is not None:
        torch.cuda.set_device(gpu)


def _run(name: str, recipe: Recipe, folder: Path, overwrite: bool) -> None:
    from vitslim.pipeline.running import run

    def report(one: Progress) -> None:
        _reports[0].put(replace(one, stage=f"{name}: {one.stage}", metrics=dict(one.metrics)))

    run(recipe, folder, overwrite=overwrite, progress=report)
