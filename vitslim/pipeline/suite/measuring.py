"""Measuring one piece of the suite, in the process that was started for it."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch

from vitslim.bench.ceilings import measure_ceilings
from vitslim.bench.clock import torch_threads
from vitslim.bench.contest import Cell, Contest, Meter, facts_of
from vitslim.bench.environment import environment
from vitslim.bench.faults import first_line, is_out_of_memory
from vitslim.bench.kernels import KernelRow, KernelSkip, time_kernels
from vitslim.bench.nvml import open_nvml
from vitslim.bench.result import BenchRow, Skipped
from vitslim.bench.roofline import Ceilings, Traffic, model_flops, standing
from vitslim.bench.suite import DENSE, Piece, PieceResult, Status, SuiteRow
from vitslim.errors import MissingDependencyError
from vitslim.pipeline.suite.compiling import compile_ahead
from vitslim.pipeline.suite.field import kind_of, open_runners
from vitslim.pipeline.suite.preset import COMPILED, Preset
from vitslim.runtime.runner import DTYPES

Measure = Callable[[Piece, Preset, str], PieceResult]


def measure_piece(piece: Piece, preset: Preset, digest: str) -> PieceResult:
    """Measure a piece; whatever goes wrong becomes its status, never an exception."""
    began = time.perf_counter()
    try:
        with torch_threads(preset.threads):
            found: dict[str, Any] = _kernels(piece, preset) if piece.kind == "kernels" else _models(piece, preset)
    except Exception as error:  # a piece that fails must not end the suite
        status: Status = "out of memory" if is_out_of_memory(error) else "failed"
        if isinstance(error, MissingDependencyError):
            status = "unavailable"
        found = {"status": status, "reason": first_line(error)}
    free_memory()
    known = environment() | {"torch_threads": preset.threads}
    return PieceResult(piece=piece, digest=digest, seconds=time.perf_counter() - began, environment=known, **found)


def serve(connection: Any, preset: dict[str, Any], measure: Measure = measure_piece) -> None:
    """Measure the pieces that come in through a connection until it closes: the body of a worker process."""
    # A group of its own: the parent ends a worker with all that it started, and Ctrl-C reaches the parent alone.
    os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # What libraries print must not mix with the command's own output.
    os.dup2(2, 1)
    settings = Preset.model_validate(preset)
    while True:
        try:
            piece, digest = connection.recv()
        except EOFError:
            return
        result = measure(Piece.model_validate(piece), settings, digest)
        connection.send(result.model_dump(mode="json"))


def _end_with_parent() -> None:
    """End this process and what it started when its parent is gone, which a signal may end without a word."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "serve() is the body of a child process"
    parent.join()
    os.killpg(0, signal.SIGKILL)


def free_memory() -> None:
    """Give back what the last piece compiled and allocated."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _models(piece: Piece, preset: Preset) -> dict[str, Any]:
    device = _device(preset)
    _require_backend(piece, device)
    meter, notes = _meter(device, preset)
    if device.type == "cuda" and piece.backend in COMPILED:
        compile_ahead(piece, preset)
    runners = open_runners(piece, preset)
    ceilings = measure_ceilings(device, piece.precision)
    contest = Contest(
        entrants=runners.entrants,
        baseline=DENSE,
        threads=preset.threads,
        rounds=preset.rounds,
        warmup=preset.warmup,
        seconds=preset.seconds,
        device="cuda" if device.type == "cuda" else "cpu",
        meter=meter,
    )
    skipped = list(runners.skipped)
    cell = Cell(piece.backend, piece.precision)
    rows = [
        _suite_row(row, piece, preset, runners.traffic[row.model], ceilings)
        for row in contest.measure(cell, piece.batches, skipped)
    ]
    status, reason = _status(bool(rows), skipped)
    return {
        "status": status,
        "reason": reason,
        "ceilings": ceilings,
        "rows": rows,
        "skipped": skipped,
        "notes": [*notes, *contest.notes],
    }


def _kernels(piece: Piece, preset: Preset) -> dict[str, Any]:
    device = _device(preset)
    if device.type != "cuda" or find_spec("triton") is None:
        raise MissingDependencyError("kernels are timed on an NVIDIA GPU with triton")
    from vitslim.kernels.triton.cases import kernel_cases
    from vitslim.kernels.triton.token_cases import token_cases

    ceilings = measure_ceilings(device, piece.precision)
    rows: list[KernelRow] = []
    skipped: list[KernelSkip] = []
    for tokens in piece.tokens:
        for batch in piece.batches:
            for build in (kernel_cases, token_cases):
                timed, missed = _timed_kernels(build, tokens, batch, piece, preset, ceilings, device)
                rows += timed
                skipped += missed
                free_memory()
    reason = None if rows else skipped[0].reason if skipped else "there is no kernel for this setting"
    status: Status = "measured" if rows else "failed"
    return {"status": status, "reason": reason, "ceilings": ceilings, "kernel_rows": rows, "kernel_skips": skipped}


def _timed_kernels(
    build: Callable[..., list[Any]],
    tokens: int,
    batch: int,
    piece: Piece,
    preset: Preset,
    ceilings: Ceilings,
    device: torch.device,
) -> tuple[list[KernelRow], list[KernelSkip]]:
    """The kernels of one list at one size. Their tensors alone may not fit: the other sizes go on."""
    try:
        cases = build(device, DTYPES[piece.precision], tokens, batch)
    except Exception as error:
        return [], [KernelSkip.of(build.__name__.replace("_", " "), tokens, batch, error)]
    return time_kernels(
        cases, precision=piece.precision, batch=batch, ceilings=ceilings, device=device, rounds=preset.rounds
    )


def _device(preset: Preset) -> torch.device:
    device = torch.device(preset.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError("this preset measures a GPU, and torch sees none")
    return device


def _require_backend(piece: Piece, device: torch.device) -> None:
    """Refuse a backend that is not here before models are built and exported for it."""
    if facts_of(piece.backend).needs_gpu and device.type != "cuda":
        raise MissingDependencyError(f"{piece.backend} runs on a GPU, this preset measures the CPU")
    if piece.backend == "ort" and device.type == "cuda":
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise MissingDependencyError("ort: this ONNX Runtime has no CUDA provider; pip install onnxruntime-gpu")
    needed = {"ort": "onnxruntime", "ort-tensorrt": "tensorrt", "tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
    module = needed.get(piece.backend)
    if module is not None and find_spec(module) is None:
        raise MissingDependencyError(f"{piece.backend} needs {module}, which is not installed")


def _meter(device: torch.device, preset: Preset) -> tuple[Meter | None, list[str]]:
    if not preset.energy:
        return None, []
    try:
        nvml = open_nvml(device)
    except MissingDependencyError as error:
        return None, [f"no energy and clocks: {error}"]
    return (lambda call: nvml.measure(call, torch.cuda.synchronize)), []


def _suite_row(row: BenchRow, piece: Piece, preset: Preset, traffic: Traffic, ceilings: Ceilings) -> SuiteRow:
    place = None
    if piece.backend != "train":
        gbytes = traffic.gbytes(row.batch, DTYPES[piece.precision].itemsize)
        place = standing(model_flops(row.macs, row.batch), gbytes, row.latency_ms_p50, ceilings)
    return SuiteRow(
        **row.model_dump(),
        base=piece.model,
        size=piece.image_size,
        kind=kind_of(row.model, preset),
        tflops=None if place is None else place.tflops,
        gbytes_s=None if place is None else place.gbytes_s,
        intensity=None if place is None else place.intensity,
        roofline_share=None if place is None else place.share,
    )


def _status(has_rows: bool, skipped: list[Skipped]) -> tuple[Status, str | None]:
    if has_rows:
        return "measured", None
    # Without rows the baseline itself did not run: its entry names no model.
    fault = next((one for one in skipped if one.model is None), skipped[0])
    return ("out of memory" if fault.out_of_memory else "failed"), fault.reason
