"""Timing competitors in the same rounds, so that drift hits all of them alike."""

import gc
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import torch

Call = Callable[[], object]
Clock = Callable[[Call], float]

MIN_ROUNDS = 5  # below five samples a median of ratios says nothing


def cpu_clock(call: Call) -> float:
    """Milliseconds of one call, by the wall clock."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def processor_clock(call: Call) -> float:
    """Milliseconds that the processor spends on one call: what waits for other work on the machine does not count.

    Of several threads the sum.
    """
    start = time.process_time()
    call()
    return (time.process_time() - start) * 1e3


def cuda_clock(call: Call) -> float:
    """Milliseconds of one call on the GPU, between two events on torch's stream."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def interleaved_latencies_ms(
    competitors: Mapping[str, Call],
    *,
    rounds: int,
    warmup: int = 3,
    seconds: float | None = None,
    least_seconds: float = 0.0,
    clock: Clock = cpu_clock,
) -> dict[str, list[float]]:
    """Latencies of every competitor, sample i of each taken in the same round.

    A machine that slows down (heat, a neighbour) slows all competitors of a round, so the ratio inside a round stays
    honest where two separate runs would not. Each round starts with another competitor. Right before it is timed each
    is called once more, so that the caches hold its own weights, as where a model runs by itself, and not those of
    whoever shares the rounds.

    Args:
        competitors: what to call, by name.
        rounds: samples per competitor, or more.
        warmup: calls of each before the first sample.
        seconds: stop after this time even if rounds remain, but not before ``MIN_ROUNDS``.
        least_seconds: go on until this time is over even if all rounds are done; what takes a millisecond needs it.
        clock: takes one call, gives its milliseconds.
    """
    for call in competitors.values():
        for _ in range(warmup):
            call()
    names = list(competitors)
    samples: dict[str, list[float]] = {name: [] for name in names}
    begun = time.perf_counter()
    deadline = begun + (float("inf") if seconds is None else seconds)
    with _no_garbage_collection():
        for index in count():
            now = time.perf_counter()
            if (index >= rounds and now >= begun + least_seconds) or (index >= MIN_ROUNDS and now > deadline):
                break
            first = index % len(names)
            for name in names[first:] + names[:first]:
                competitors[name]()
                samples[name].append(clock(competitors[name]))
    return samples


def percentile(samples: list[float], percent: int) -> float:
    """The value below which ``percent`` (0..100) of the samples lie, linear between neighbours."""
    return float(np.percentile(samples, percent))


def compared(own: list[float], baseline: list[float]) -> dict[str, Any]:
    """The fields of a row that interleaved latencies give: medians, and ratios within the rounds."""
    ratios = [slow / fast for slow, fast in zip(baseline, own, strict=True)]
    return {
        "latency_ms_p50": percentile(own, 50),
        "latency_ms_p90": percentile(own, 90),
        "speedup_vs_dense": percentile(baseline, 50) / percentile(own, 50),
        "speedup_p10": percentile(ratios, 10),
        "speedup_p90": percentile(ratios, 90),
    }


@contextmanager
def torch_threads(threads: int) -> Generator[None]:
    """Run torch on ``threads`` threads inside the block, on as many as before after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_garbage_collection() -> Generator[None]:
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
