"""Exported files quantized by Model-Optimizer with images of their task, and proven."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from vitslim import checkpoint
from vitslim.arguments import checked
from vitslim.bench.clock import Clock, cuda_clock
from vitslim.errors import CheckpointError, ConfigError, MissingDependencyError, UnsupportedModelError
from vitslim.files import scratch_beside
from vitslim.pipeline.gate import Judged, QuantizedExport, keep_or_reject, latencies_ms
from vitslim.pipeline.images import DataLike
from vitslim.runtime import OrtRunner, Precision, Runner
from vitslim.shapes import AnyPath, AtLeastOne, Seed
from vitslim.targets import TARGETS, ExportRequest, Opening, Target, Timing
from vitslim.targets.onnx.quantization import PRECISIONS, quantize_onnx, require_modelopt
from vitslim.train import EvalResult


@checked
def quantize(
    folder: AnyPath,
    data: DataLike,
    *,
    precision: str = "fp8",
    others: Precision = "fp16",
    out: AnyPath | None = None,
    artifact: AnyPath | None = None,
    images: AtLeastOne = 512,
    max_drop: float = 1.0,
    seed: Seed = 0,
    overwrite: bool = False,
    **options: Any,
) -> QuantizedExport:
    """Quantize the exported ONNX file of a saved folder with NVIDIA Model-Optimizer, and prove it.

    It is judged on held-out images, by its engine where TensorRT and a GPU are here, else in ONNX Runtime; and timed as
    an engine beside those in float. A file that loses too much, or gains nothing, lies in ``rejected``; what could not
    be proven here is in the notes.

    Args:
        folder: that ``save`` wrote, with ``export/model.onnx`` in it.
        data: calibration takes images of its training split, the judgement of its held-out one.
        precision: ``fp8`` or ``int8``, of the matrix products.
        others: of everything else.
        out: the new file; ``export/quantized/model-fp8.onnx`` by default, apart from the files that keep parity.
        artifact: another ONNX file than ``export/model.onnx``.
        images: for the calibration; without augmentation.
        max_drop: points of accuracy (of agreement with the model, without labels) that may be lost.
        seed: of the choice of calibration images.
        overwrite: replace what lies there.
        options: python, providers, calibration_file, see ``vitslim.targets.onnx.quantization.quantize_onnx``.

    Raises:
        MissingDependencyError: nvidia-modelopt is not in the environment of ``python``.
        ConfigError: no ONNX file yet, an unknown precision, too few images, or something that would be written over.
        UnsupportedModelError: Model-Optimizer could not quantize the file, or wrote one whose types do not fit.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision!r} is not offered; wanted {' or '.join(PRECISIONS)}")
    folder = Path(folder)
    if not checkpoint.is_saved_model(folder):
        raise ConfigError(f"{folder} is no folder that vitslim wrote; wanted one (`vitslim convert ... --out DIR`)")
    source = Path(artifact) if artifact else folder / "export" / "model.onnx"
    if not source.is_file():
        raise ConfigError(f"{source} does not exist; run `vitslim export {folder} --to onnx` first")
    target = Path(out) if out else folder / "export" / "quantized" / f"model-{precision}.onnx"
    TARGETS.get("onnx").check_path(target, overwrite=overwrite)
    # Asked before images are read.
    require_modelopt(str(options.get("python") or sys.executable))
    judged = Judged(checkpoint.load(folder), data)
    with scratch_beside(target) as scratch:
        made = scratch / "files" / target.name
        written = quantize_onnx(
            source, made, judged.calibration(images, seed), precision=precision, others=others, **options
        )
        engine, latency, notes = TARGETS.get("tensorrt"), {}, list[str]()
        if missing := _missing(engine):
            file = _in_onnx_runtime(made, judged, notes)
            notes.append(f"its speed is not proven: {missing}")
        else:
            file, latency = proven_as(engine, made, judged, precision, others, notes, device="cuda", clock=cuda_clock)
        return keep_or_reject(made, target, judged, file, max_drop, latency, precision, written, notes)


def _missing(engine: Target) -> str | None:
    try:
        engine.require()
    except MissingDependencyError as error:
        return str(error)
    return None if torch.cuda.is_available() else "engines are built and timed on an NVIDIA GPU"


def _in_onnx_runtime(made: Path, judged: Judged, notes: list[str]) -> EvalResult | None:
    try:
        runner = OrtRunner(made)
    except (CheckpointError, ConfigError) as error:
        if "Type Error" in str(error) and "float8" not in str(error):
            raise UnsupportedModelError(
                f"Model-Optimizer wrote a file whose types do not fit together; try --others fp32 ({error})"
            ) from None
        # FP8 in the form that TensorRT reads has operators that ONNX Runtime does not know.
        notes.append(f"its accuracy is not proven: ONNX Runtime does not run the file: {error}")
        return None
    with runner:
        return judged.result(runner)


def proven_as(
    target: Target,
    made: Path,
    judged: Judged,
    precision: str,
    others: Precision,
    notes: list[str],
    *,
    device: str,
    clock: Clock,
) -> tuple[EvalResult, dict[int, dict[str, float]]]:
    """Accuracy and times of what ``target`` builds from a quantized ONNX file, beside the model in half precision."""
    with TemporaryDirectory(prefix="vitslim-quantized-") as folder:

        def opened(sizes: Sequence[int]) -> Runner:
            path = Path(folder) / f"{'-'.join(map(str, sizes))}{target.suffix or ''}"
            how = Timing(others, sizes, device, Opening(target.backends[0].name))
            request = ExportRequest(path, others, lambda: judged.model, source=made)
            target.write(request, **target.timing_options(how))
            return target.load(path, how.opening)

        with opened((8,)) as runner:
            file = judged.result(runner)
        times = latencies_ms(
            target, judged.model, {precision: opened}, ("fp16", "bf16"), notes, device=device, clock=clock
        )
    return file, times
