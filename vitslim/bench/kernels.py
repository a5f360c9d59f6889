"""Kernels compared with their dense baselines, on tensors alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from vitslim.bench.clock import compared, cpu_clock, cuda_clock, interleaved_latencies_ms, percentile
from vitslim.bench.result import Skipped
from vitslim.bench.roofline import MeasuredPeaks, roofline_point
from vitslim.bench.session import RunConfig
from vitslim.kernels.dispatch import triton_mode
from vitslim.kernels.triton.cases import KernelCase
from vitslim.runtime import Precision
from vitslim.runtime.cuda_graph import record
from vitslim.runtime.runner import DTYPES
from vitslim.shapes import Result

REPEATS = 20  # calls recorded in one CUDA graph: one kernel alone is shorter than the time between two events


class KernelRow(Result):
    """One kernel at one number of tokens; times are of one call, ratios to the dense baseline in the same rounds.

    Every call reads the same operands. Those that the GPU's L2 cache holds come from there, for the baseline too, and
    ``roofline_share``, which counts memory, may be above 1.
    """

    kernel: str
    tokens: int
    batch: int
    precision: Precision
    latency_ms_p50: float
    latency_ms_p90: float
    dense_ms_p50: float
    speedup_vs_dense: float
    speedup_p10: float
    speedup_p90: float
    roofline_share: float
    rounds: int


def time_kernels(
    build: Callable[[torch.device, torch.dtype, int, int], Iterable[KernelCase]],
    *,
    tokens: int,
    batch: int,
    precision: Precision,
    peaks: MeasuredPeaks,
    device: torch.device,
    rounds: int,
    seconds: float | None = None,
) -> tuple[list[KernelRow], list[Skipped]]:
    """Time every case beside its dense baseline, interleaved; what fails is named and the others go on.

    Args:
        build: makes the cases, which need triton, on a device, of a type, for a number of tokens and images; their
            tensors may not fit.
        seconds: time limit of one case's rounds.
    """
    where = RunConfig("kernels", precision)
    try:
        cases = build(device, DTYPES[precision], tokens, batch)
    except Exception as error:
        name = build.__name__.replace("_", " ")
        return [], [where.skip(error, model=f"{name}, {tokens} tokens", batch=batch)]
    rows: list[KernelRow] = []
    skipped: list[Skipped] = []
    for case in cases:
        try:
            with triton_mode("1"):
                rows.append(_row(case, precision, batch, peaks, device, rounds, seconds))
        except Exception as error:  # whatever a kernel raises, the other kernels go on
            skipped.append(where.skip(error, model=f"{case.name}, {case.tokens} tokens", batch=batch))
    return rows, skipped


def _row(
    case: KernelCase,
    precision: Precision,
    batch: int,
    peaks: MeasuredPeaks,
    device: torch.device,
    rounds: int,
    seconds: float | None,
) -> KernelRow:
    is_gpu = device.type == "cuda"
    calls = {"kernel": case.call, "dense": case.dense}
    if is_gpu:
        calls = {name: record(call, device, REPEATS)[0] for name, call in calls.items()}
    clock = cuda_clock if is_gpu else cpu_clock
    samples = interleaved_latencies_ms(calls, rounds=rounds, seconds=seconds, clock=clock)
    own, dense = ([value / (REPEATS if is_gpu else 1) for value in samples[name]] for name in ("kernel", "dense"))
    point = roofline_point(float(case.flops), case.bytes / 1e9, percentile(own, 50), peaks)
    return KernelRow(
        kernel=case.name,
        tokens=case.tokens,
        batch=batch,
        precision=precision,
        **compared(own, dense),
        dense_ms_p50=percentile(dense, 50),
        roofline_share=point.share,
        rounds=len(own),
    )
