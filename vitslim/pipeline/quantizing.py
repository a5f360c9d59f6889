"""Exported files quantized with images of their task."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from vitslim import checkpoint
from vitslim.arguments import checked
from vitslim.errors import ConfigError
from vitslim.pipeline.images import DataLike, open_loader, sample_images
from vitslim.runtime import Precision
from vitslim.shapes import AnyPath, AtLeastOne, NoneOrMore, Seed
from vitslim.targets import TARGETS
from vitslim.targets.onnx.quantization import PRECISIONS, QuantizedOnnx, quantize_onnx, require_modelopt


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
    compare: NoneOrMore = 64,
    seed: Seed = 0,
    overwrite: bool = False,
    **options: Any,
) -> QuantizedOnnx:
    """Quantize the exported ONNX file of a saved folder with NVIDIA Model-Optimizer.

    Args:
        folder: that ``save`` wrote, with ``export/model.onnx`` in it.
        data: calibration takes images of its training split, the comparison of its held-out one.
        precision: ``fp8`` or ``int8``, of the matrix products.
        others: of everything else.
        out: the new file; ``export/quantized/model-fp8.onnx`` by default, apart from the files that keep parity.
        artifact: another ONNX file than ``export/model.onnx``.
        images: for the calibration; without augmentation.
        compare: held-out images on which the new file is compared with the model; 0 for none.
        seed: of the choice of calibration images.
        overwrite: replace what lies there.
        options: python, providers, calibration_file, see ``vitslim.targets.onnx.quantization.quantize_onnx``.

    Raises:
        MissingDependencyError: nvidia-modelopt is not in the environment of ``python``.
        ConfigError: no ONNX file yet, an unknown precision, or something that would be written over.
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
    model = checkpoint.load(folder)
    loader = open_loader(
        data, model, split="train", batch_size=min(images, 64), limit=images, labels="ignore", seed=seed
    )
    calibration = torch.cat([batch.images for batch in loader])[:images]
    return quantize_onnx(
        source,
        target,
        calibration,
        precision=precision,
        others=others,
        model=model,
        images=sample_images(model, data, compare) if compare else None,
        **options,
    )
