"""Measuring one case of the suite, in the process that was started for it."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch

from vitslim.bench.clock import torch_threads
from vitslim.bench.cost import FLOPS_PER_MAC
from vitslim.bench.environment import environment
from vitslim.bench.kernels import KernelRow, time_kernels
from vitslim.bench.nvml import open_nvml
from vitslim.bench.peaks import measure_peaks
from vitslim.bench.result import BenchRow, Skipped
from vitslim.bench.roofline import MeasuredPeaks, count_traffic, roofline_point
from vitslim.bench.session import Candidate, Meter, RunConfig, Session, candidates, facts_of
from vitslim.bench.suite import DENSE, Case, SuiteRow
from vitslim.errors import MissingDependencyError
from vitslim.pipeline.suite.competitors import compile_ahead, kind_of, open_competitor
from vitslim.pipeline.suite.preset import Preset
from vitslim.runtime.runner import DTYPES
from vitslim.trunk import plan_of


def measure_case(case: Case, preset: Preset, *_: object) -> dict[str, Any]:
    """The fields of a case's result; see ``process.Work``. It is stopped from outside.

    Raises:
        Exception: whatever a backend raises for the dense model.
    """
    device = torch.device(preset.device)
    if case.tokens:
        return _measure_kernels(case, preset, device)
    if facts_of(case.backend).needs_gpu and device.type != "cuda":
        raise MissingDependencyError(f"{case.backend} runs on a GPU, this preset measures the CPU")
    with torch_threads(preset.threads):
        return {"environment": environment(), **_measure_models(case, preset, device)}


def _measure_models(case: Case, preset: Preset, device: torch.device) -> dict[str, Any]:
    if device.type == "cuda" and case.backend.startswith("compiled"):
        compile_ahead(case, preset)
    config = RunConfig(case.backend, case.precision)
    models, skipped = candidates({DENSE: open_competitor(DENSE, case, preset)}), list[Skipped]()
    for name in case.competitors:
        try:
            models |= candidates({name: open_competitor(name, case, preset)})
        except Exception as error:  # a competitor that cannot be had is named, the others go on
            skipped.append(config.skip(error, model=name))
    if case.triton:
        models = {DENSE: models.pop(DENSE)} | {
            f"{name} triton={mode}": replace(model, triton=mode)
            for name, model in models.items()
            for mode in case.triton
        }
    models |= {
        f"{name} {precision}": replace(model, precision=precision)
        for precision in case.also
        for name, model in models.items()
    }
    meter, notes = _meter(device, preset)
    peaks = measure_peaks(device, case.precision)
    session = Session(
        candidates=models,
        baseline=DENSE,
        device="cuda" if device.type == "cuda" else "cpu",
        meter=meter,
        **{name: preset.timing[name] for name in ("threads", "rounds", "warmup", "seconds")},
    )
    rows = [
        _suite_row(row, preset, models[row.model], peaks if row.precision == case.precision else None)
        for row in session.measure(config, (case.batch,), skipped)
    ]
    found = {"peaks": peaks, "rows": rows, "skipped": skipped, "notes": [*notes, *session.notes]}
    # Without rows the baseline itself did not run: its entry names no model.
    failed = next((one for one in skipped if one.model is None), None)
    return found if failed is None else found | _status(failed)


def _measure_kernels(case: Case, preset: Preset, device: torch.device) -> dict[str, Any]:
    if device.type != "cuda" or find_spec("triton") is None:
        raise MissingDependencyError("kernels are timed on an NVIDIA GPU with triton")
    from vitslim.kernels.triton.cases import kernel_cases
    from vitslim.kernels.triton.token_cases import token_cases

    peaks = measure_peaks(device, case.precision)
    shared: Any = {"precision": case.precision, "peaks": peaks, "device": device}
    shared |= {"rounds": preset.rounds, "seconds": preset.seconds}
    rows: list[KernelRow] = []
    skipped: list[Skipped] = []
    for tokens in case.tokens:
        for build in (kernel_cases, token_cases):
            timed, missed = time_kernels(build, tokens=tokens, batch=case.batch, **shared)
            rows += timed
            skipped += missed
            torch.cuda.empty_cache()
    found = {"peaks": peaks, "kernel_rows": rows, "skipped": skipped}
    return found if rows or not skipped else found | _status(skipped[0])


def _meter(device: torch.device, preset: Preset) -> tuple[Meter | None, list[str]]:
    if not preset.energy:
        return None, []
    try:
        nvml = open_nvml(device)
    except MissingDependencyError as error:
        return None, [f"no energy and clocks: {error}"]
    return (lambda call: nvml.measure(call, torch.cuda.synchronize)), []


def _suite_row(row: BenchRow, preset: Preset, model: Candidate, peaks: MeasuredPeaks | None) -> SuiteRow:
    point, name = None, row.model.partition(" ")[0]  # behind it a mode or precision of its own
    kernels = preset.competitors[name].kernels if name in preset.competitors else None
    plan = plan_of(model.model) if kernels is not None else None
    if row.backend != "train" and peaks is not None:
        gbytes = count_traffic(model.model).gbytes(row.batch, DTYPES[row.precision].itemsize)
        point = roofline_point(float(FLOPS_PER_MAC * row.macs * row.batch), gbytes, row.latency_ms_p50, peaks)
    return SuiteRow(
        **row.model_dump(exclude={"model"}),
        model=name,
        kind=kind_of(name, preset.competitors),
        triton=model.triton,
        kernels=kernels,
        tokens=None if plan is None else plan.patches + plan.model.prefix,
        tflops=point and point.tflops,
        gbytes_s=point and point.gbytes_s,
        roofline_share=point and point.share,
    )


def _status(skip: Skipped) -> dict[str, Any]:
    """How a case without rows ended."""
    is_absent = skip.reason.startswith(MissingDependencyError.__name__)
    status = "out of memory" if skip.out_of_memory else "unavailable" if is_absent else "failed"
    return {"status": status, "reason": skip.reason}
