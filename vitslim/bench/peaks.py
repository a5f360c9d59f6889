"""Measuring the peaks of a machine, so that shares of them are shares of something real."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vitslim.bench.clock import Clock, cpu_clock, cuda_clock
from vitslim.bench.result import MIB
from vitslim.bench.roofline import MeasuredPeaks
from vitslim.runtime.runner import DTYPES, Precision

_WARMUP = 3
# Side of the matrices, MiB of the copy, rounds: neither launch-bound nor read from a cache.
_ON_GPU, _ON_CPU = (8192, 1024, 20), (1024, 256, 7)


def measure_peaks(device: torch.device | str, precision: Precision) -> MeasuredPeaks:
    """The best of several large matrix products and of several large copies, on torch's threads or its GPU.

    Args:
        precision: of the matrices; float32 runs without TF32, as torch does by default.
    """
    where = torch.device(device)
    is_gpu = where.type == "cuda"
    n, copy_mib, rounds = _ON_GPU if is_gpu else _ON_CPU
    left, right = (torch.randn(n, n, device=where).to(DTYPES[precision]) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.zeros(copy_mib * MIB, dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    clock = cuda_clock if is_gpu else cpu_clock
    gemm_ms = _best_ms(lambda: torch.mm(left, right, out=product), clock, rounds)
    copy_ms = _best_ms(lambda: target.copy_(source), clock, rounds)
    return MeasuredPeaks(
        tflops=2 * n**3 / gemm_ms / 1e9,
        gbytes_s=2 * source.numel() / copy_ms / 1e6,
        gemm_size=n,
        copy_mib=float(copy_mib),
    )


def _best_ms(call: Callable[[], object], clock: Clock, rounds: int) -> float:
    for _ in range(_WARMUP):
        call()
    return min(clock(call) for _ in range(rounds))
