"""Measuring the peaks of a machine, so that shares of them are shares of something real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vitslim.bench.clock import Clock, cpu_clock, cuda_clock
from vitslim.bench.roofline import MeasuredPeaks
from vitslim.runtime.runner import DTYPES, Precision

_MIB = 2**20
_WARMUP = 3


@dataclass(frozen=True)
class PeakSizes:
    """How large the two measurements are: large enough to be neither launch-bound nor served from a cache."""

    gemm: int
    copy_mib: int
    rounds: int


ON_GPU = PeakSizes(gemm=8192, copy_mib=1024, rounds=20)
ON_CPU = PeakSizes(gemm=1024, copy_mib=256, rounds=7)


def measure_peaks(device: torch.device | str, precision: Precision, sizes: PeakSizes | None = None) -> MeasuredPeaks:
    """The best of several large matrix products and of several large copies, on torch's threads or its GPU.

    Args:
        precision: of the matrices; float32 runs without TF32, as torch does by default.
        sizes: by default those for the kind of device.
    """
    where = torch.device(device)
    chosen = sizes or (ON_GPU if where.type == "cuda" else ON_CPU)
    n = chosen.gemm
    left, right = (torch.randn(n, n, device=where).to(DTYPES[precision]) for _ in range(2))
    product = torch.empty_like(left)
    source = torch.zeros(chosen.copy_mib * _MIB, dtype=torch.uint8, device=where)
    target = torch.empty_like(source)
    clock = cuda_clock if where.type == "cuda" else cpu_clock
    gemm_ms = _best_ms(lambda: torch.mm(left, right, out=product), clock, chosen.rounds)
    copy_ms = _best_ms(lambda: target.copy_(source), clock, chosen.rounds)
    return MeasuredPeaks(
        tflops=2 * n**3 / gemm_ms / 1e9,
        gbytes_s=2 * source.numel() / copy_ms / 1e6,
        gemm_size=n,
        copy_mib=float(chosen.copy_mib),
    )


def _best_ms(call: Callable[[], object], clock: Clock, rounds: int) -> float:
    for _ in range(_WARMUP):
        call()
    return min(clock(call) for _ in range(rounds))
