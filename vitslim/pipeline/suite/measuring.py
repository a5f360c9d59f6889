"""Measuring one case of the suite, in the process that was started for it."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from vitslim.bench.clock import torch_threads
from vitslim.bench.cost import FLOPS_PER_MAC
from vitslim.bench.environment import environment
from vitslim.bench.kernels import KernelRow, KernelSkip, time_kernels
from vitslim.bench.nvml import open_nvml
from vitslim.bench.peaks import measure_peaks
from vitslim.bench.result import BenchRow, Skipped
from vitslim.bench.roofline import MeasuredPeaks, count_traffic, roofline_point
from vitslim.bench.session import Candidate, Meter, RunConfig, Session, facts_of
from vitslim.bench.suite import DENSE, Case, SuiteRow
from vitslim.errors import MissingDependencyError
from vitslim.pipeline.suite.competitors import kind_of, open_competitors
from vitslim.pipeline.suite.compiling import compile_ahead
from vitslim.pipeline.suite.preset import COMPILED, SuitePreset
from vitslim.progress import ProgressCallback
from vitslim.runtime.runner import DTYPES


def measure_case(case: Case, preset: SuitePreset, seconds: float | None, progress: ProgressCallback) -> dict[str, Any]:
    """The fields of a case's result; see ``process.Work``. It is stopped from outside.

    Raises:
        Exception: whatever a backend raises for the dense model.
    """
    device = torch.device(preset.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError("this preset measures a GPU, and torch sees none")
    with torch_threads(preset.threads):
        measure = _measure_kernels if case.kind == "kernels" else _measure_models
        return {"environment": environment(), **measure(case, preset, device)}


def _measure_models(case: Case, preset: SuitePreset, device: torch.device) -> dict[str, Any]:

    _require_backend(case, device)
    meter, notes = _meter(device, preset)
    if device.type == "cuda" and case.backend in COMPILED:
        compile_ahead(case, preset)
    models, skipped = open_competitors(case, preset)
    peaks = measure_peaks(device, case.precision)
    session = Session(
        candidates=models,
        baseline=DENSE,
        threads=preset.threads,
        rounds=preset.rounds,
        warmup=preset.warmup,
        seconds=preset.seconds,
        device="cuda" if device.type == "cuda" else "cpu",
        meter=meter,
    )
    config = RunConfig(case.backend, case.precision)
    rows = [
        _suite_row(row, case, preset, models[row.model], peaks)
        for row in session.measure(config, case.batches, skipped)
    ]
    found = {"ceilings": peaks, "rows": rows, "skipped": skipped, "notes": [*notes, *session.notes]}
    return found if rows else found | _nothing_measured(skipped)


def _measure_kernels(case: Case, preset: SuitePreset, device: torch.device) -> dict[str, Any]:
    if device.type != "cuda" or find_spec("triton") is None:
        raise MissingDependencyError("kernels are timed on an NVIDIA GPU with triton")
    from vitslim.kernels.triton.cases import kernel_cases
    from vitslim.kernels.triton.token_cases import token_cases

    peaks = measure_peaks(device, case.precision)
    shared: Any = {"precision": case.precision, "peaks": peaks, "device": device, "rounds": preset.rounds}
    rows: list[KernelRow] = []
    skipped: list[KernelSkip] = []
    for tokens in case.tokens:
        for batch in case.batches:
            for build in (kernel_cases, token_cases):
                timed, missed = time_kernels(build, tokens=tokens, batch=batch, **shared)
                rows += timed
                skipped += missed
                torch.cuda.empty_cache()
    found = {"ceilings": peaks, "kernel_rows": rows, "kernel_skips": skipped}
    if rows:
        return found
    reason = skipped[0].reason if skipped else "there is no kernel for this setting"
    return found | {"status": "failed", "reason": reason}


def _require_backend(case: Case, device: torch.device) -> None:
    """Refuse a backend that is not here before models are built and exported for it."""
    if facts_of(case.backend).needs_gpu and device.type != "cuda":
        raise MissingDependencyError(f"{case.backend} runs on a GPU, this preset measures the CPU")
    if case.backend == "ort" and device.type == "cuda":
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise MissingDependencyError("ort: this ONNX Runtime has no CUDA provider; pip install onnxruntime-gpu")
    needed = {"ort": "onnxruntime", "ort-tensorrt": "tensorrt", "tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
    module = needed.get(case.backend)
    if module is not None and find_spec(module) is None:
        raise MissingDependencyError(f"{case.backend} needs {module}, which is not installed")


def _meter(device: torch.device, preset: SuitePreset) -> tuple[Meter | None, list[str]]:
    if not preset.energy:
        return None, []
    try:
        nvml = open_nvml(device)
    except MissingDependencyError as error:
        return None, [f"no energy and clocks: {error}"]
    return (lambda call: nvml.measure(call, torch.cuda.synchronize)), []


def _suite_row(row: BenchRow, case: Case, preset: SuitePreset, model: Candidate, peaks: MeasuredPeaks) -> SuiteRow:
    point = None
    if case.backend != "train":
        gbytes = count_traffic(model.model).gbytes(row.batch, DTYPES[case.precision].itemsize)
        point = roofline_point(float(FLOPS_PER_MAC * row.macs * row.batch), gbytes, row.latency_ms_p50, peaks)
    return SuiteRow(
        **row.model_dump(),
        base=case.model,
        size=case.image_size,
        kind=kind_of(row.model, preset.competitors),
        tflops=point and point.tflops,
        gbytes_s=point and point.gbytes_s,
        intensity=point and point.intensity,
        roofline_share=point and point.share,
    )


def _nothing_measured(skipped: list[Skipped]) -> dict[str, Any]:
    # Without rows the baseline itself did not run: its entry names no model.
    first = next((one for one in skipped if one.model is None), skipped[0])
    return {"status": "out of memory" if first.out_of_memory else "failed", "reason": first.reason}
