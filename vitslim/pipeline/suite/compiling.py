"""Compiling the competitors of a piece side by side, before they are timed one beside the other.

Inductor keeps what it compiled in a cache on disk. Processes that compile one competitor each fill it; the process that
measures then finds its graphs there. Without that a piece of eighteen competitors spends most of its time on one core.
"""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, wait
from typing import Any

from vitslim.bench.suite import DENSE, Piece
from vitslim.pipeline.suite.preset import Preset

_CORES_PER_COMPILER = 2


def compile_ahead(piece: Piece, preset: Preset, workers: int | None = None) -> list[str]:
    """Fill the cache for every competitor of a compiled piece.

    Args:
        workers: processes; by default one for every two usable cores, and with one alone it is not worth while.

    Returns:
        The competitors that did not compile; the measuring process meets the same fault and records it.
    """
    names = [DENSE, *piece.competitors]
    count = min(len(names), workers or _usable_cores() // _CORES_PER_COMPILER)
    if count < 2:
        return []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=_begin) as pool:
        plain = (piece.model_dump(mode="json"), preset.model_dump(mode="json"))
        jobs = {name: pool.submit(_compile, *plain, name) for name in names}
        wait(jobs.values())
    return [name for name, job in jobs.items() if job.exception() is not None]


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin() -> None:
    # Before torch is imported: each of them would otherwise start compilers for all cores.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = str(_CORES_PER_COMPILER)


def _compile(piece: dict[str, Any], preset: dict[str, Any], name: str) -> None:
    import torch

    from vitslim.models import preprocessing
    from vitslim.pipeline.suite.field import open_competitor
    from vitslim.runtime import TorchRunner

    wanted, settings = Piece.model_validate(piece), Preset.model_validate(preset)
    device = torch.device(settings.device)
    model = open_competitor(name, wanted, settings)
    wants = preprocessing(model)
    with TorchRunner(model, compiled=True, precision=wanted.precision, device=device) as runner:
        for batch in wanted.batches:
            runner.run(torch.zeros(batch, wants.channels, *wants.image_size, device=device))
