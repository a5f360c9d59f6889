"""Compiling the competitors of a case side by side, before they are timed one beside the other.

Inductor keeps what it compiled in a cache on disk. Processes that compile one competitor each fill it; the process that
measures then finds its graphs there. Without that a case of eighteen competitors spends most of its time on one core.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, wait

from vitslim.bench.suite import DENSE, Case
from vitslim.pipeline.suite.preset import SuitePreset

_CORES_PER_COMPILER = 2


def compile_ahead(case: Case, preset: SuitePreset, workers: int | None = None) -> None:
    """Fill the cache for every competitor of a compiled case.

    A competitor that does not compile is passed over: the measuring process meets the same error and records it.

    Args:
        workers: processes; by default one for every two usable cores, and with one alone it is not worth while.
    """
    names = [DENSE, *case.competitors]
    count = min(len(names), workers or _usable_cores() // _CORES_PER_COMPILER)
    if count < 2:
        return
    with compilers(count) as pool:
        wait([pool.submit(_compile, case, preset, name) for name in names])


def compilers(count: int) -> ProcessPoolExecutor:
    """Processes to compile in, each on its share of the cores."""
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=_begin)


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin() -> None:
    # torch is imported by now and has read its environment.
    from torch._inductor import config

    # Each of them would otherwise start compilers for all cores.
    config.compile_threads = _CORES_PER_COMPILER
    # Which form of a kernel is fastest cannot be told while others use the GPU: the measuring process finds out.
    config.autotune_local_cache = False


def _compile(case: Case, preset: SuitePreset, name: str) -> None:
    import torch

    from vitslim.models import preprocessing
    from vitslim.pipeline.suite.competitors import open_competitor
    from vitslim.runtime import TorchRunner

    device = torch.device(preset.device)
    model = open_competitor(name, case, preset)
    wants = preprocessing(model)
    with TorchRunner(model, compiled=True, precision=case.precision, device=device) as runner:
        for batch in case.batches:
            runner.run(torch.zeros(batch, wants.channels, *wants.image_size, device=device))
