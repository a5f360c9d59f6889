"""Kernels beside their dense baselines, on tensors alone."""

from typing import Any

import pytest
import torch

from vitslim.bench.kernels import time_kernels
from vitslim.bench.roofline import MeasuredPeaks
from vitslim.kernels.triton.cases import KernelCase, kernel_cases
from vitslim.kernels.triton.token_cases import token_cases

PEAKS = MeasuredPeaks(tflops=0.1, gbytes_s=10.0, gemm_size=64, copy_mib=1.0)
CPU = {"precision": "fp32", "tokens": 17, "batch": 2, "peaks": PEAKS, "device": torch.device("cpu"), "rounds": 5}
WORK = {"bytes": 1000, "flops": 4000}


def work(size: int) -> Any:
    values = torch.randn(size, size)
    return lambda: values @ values


def out_of_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB")


def test_a_kernel_has_a_row_beside_its_dense_baseline() -> None:
    case = KernelCase("sparse", 17, work(8), work(256), **WORK)
    ((row,), skipped) = time_kernels(lambda *_: [case], **CPU)
    assert skipped == []
    assert (row.kernel, row.tokens, row.batch, row.rounds) == ("sparse", 17, 2, 5)
    # 4 operations per byte at 10 GB/s
    assert row.roofline_share == pytest.approx(4000 / row.latency_ms_p50 / 1e9 / 0.04)
    assert row.speedup_vs_dense == pytest.approx(row.dense_ms_p50 / row.latency_ms_p50)
    assert row.speedup_p10 <= row.speedup_p90


def test_a_kernel_is_timed_no_longer_than_it_may() -> None:
    case = KernelCase("slow", 17, work(8), work(8), **WORK)
    ((row,), _) = time_kernels(lambda *_: [case], **CPU | {"rounds": 10**9, "seconds": 0.05})
    assert row.rounds >= 5


def test_a_kernel_that_does_not_fit_is_recorded_and_the_next_one_is_timed() -> None:
    big = KernelCase("big", 4097, out_of_memory, work(8), **WORK)
    cases = [big, KernelCase("small", 17, work(8), work(8), **WORK)]
    rows, (skip,) = time_kernels(lambda *_: cases, **CPU)
    assert [row.kernel for row in rows] == ["small"]
    assert (skip.model, skip.batch, skip.out_of_memory) == ("big, 4097 tokens", 2, True)
    assert skip.reason == "OutOfMemoryError: CUDA out of memory. Tried to allocate 3 GiB"


def test_kernels_whose_tensors_do_not_fit_are_recorded_together() -> None:
    def too_large(*_: Any) -> list[KernelCase]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    rows, (skip,) = time_kernels(too_large, **CPU)
    assert rows == []
    assert (skip.model, skip.out_of_memory) == ("too large, 17 tokens", True)


@pytest.mark.parametrize("cases", [kernel_cases, token_cases])
def test_the_cases_of_the_suite_are_timed(cases: Any) -> None:
    found = cases("cpu", torch.float32, 17, 1)
    rows, skipped = time_kernels(cases, **CPU | {"batch": 1})
    assert [row.kernel for row in rows] == [case.name for case in found]
    assert skipped == []


@pytest.mark.gpu
def test_a_recorded_kernel_is_timed_per_call() -> None:
    values = torch.randn(1024, 1024, device="cuda")
    case = KernelCase("same", 17, lambda: values @ values, lambda: values @ values, **WORK)
    ((row,), _) = time_kernels(lambda *_: [case], **CPU | {"device": torch.device("cuda"), "rounds": 20})
    assert row.latency_ms_p50 < 5
