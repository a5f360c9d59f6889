"""INT8 for ONNX Runtime on a CPU, by its own quantiser: weights rounded once, activations at each call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from vitslim.errors import ConfigError, MissingDependencyError, UnsupportedModelError
from vitslim.files import reported_as, scratch_beside
from vitslim.models.digest import tensors_sha256
from vitslim.runtime import OrtRunner
from vitslim.targets.base import Judge
from vitslim.targets.input_format import InputFormat
from vitslim.targets.onnx.export import export_onnx
from vitslim.targets.onnx.graph import choosing_products, opset_of, write_properties_
from vitslim.targets.onnx.result import OnnxExport
from vitslim.targets.onnx.types import operator_types
from vitslim.targets.onnx.weights import write_model
from vitslim.targets.quiet import captured
from vitslim.targets.record import ExportRecord
from vitslim.targets.sensitivity import block_of, least_kept

OPTIONS = ("input_format", "batch")
"""Of ``export_onnx``, those that a file in INT8 can have."""


def export_int8(
    model: nn.Module,
    path: Path,
    *,
    input_format: InputFormat = "normalized",
    metadata: Mapping[str, Any] | None = None,
    judge: Judge | None = None,
    **options: Any,
) -> OnnxExport:
    """Write ``model`` as ONNX whose products with weights are in INT8, those of attention in float32.

    Weights are rounded symmetrically, each output channel by its own scale; activations at every call, by the range
    that they then have, so that no images are needed for calibration.

    Args:
        model: dense or converted; stays as it is.
        path: of the ``.onnx`` file.
        input_format: as in ``export_onnx``.
        metadata: as in ``export_onnx``.
        judge: where INT8 loses more than it allows, the blocks that it harms most stay in float, up to half of them.
        options: ``batch`` of ``export_onnx``.

    Raises:
        ConfigError: an option that goes with float only.
        MissingDependencyError: onnx, onnxscript, onnxslim or onnxruntime is not installed.
        UnsupportedModelError: the model cannot be traced, or ONNX Runtime cannot quantise it.
        CheckpointError: the file cannot be written; what lay there is unchanged.
    """
    import onnx

    foreign = [name for name in options if name not in OPTIONS]
    if foreign:
        raise ConfigError(f"{', '.join(foreign)}: int8 takes {', '.join(OPTIONS)} alone; leave it out")
    if find_spec("onnxruntime") is None:
        raise MissingDependencyError("int8 is written by onnxruntime: pip install 'vitslim[onnx]'")
    with reported_as(path), scratch_beside(path) as folder:
        source, file = folder / "float.onnx", folder / path.name
        written = export_onnx(model, source, inline=True, input_format=input_format, metadata=metadata, **options)
        if written.data_file is not None:
            raise UnsupportedModelError("ONNX Runtime quantises files of at most 2 GB, and this model's is larger")
        graph = onnx.load(source)
        choosing = choosing_products(graph)
        products = [node.name for node in graph.graph.node if node.op_type in ("MatMul", "Gemm")]

        def loss_with(kept: Sequence[int]) -> float:
            _quantize(source, file, [*choosing, *(name for name in products if block_of(name) in {*kept})])
            if judge is None:
                return 0.0
            with OrtRunner(file) as runner:
                return judge.loss(runner)

        blocks = sorted({block for name in products if (block := block_of(name)) is not None})
        sensitivity = least_kept(blocks, loss_with, judge.most if judge else 0.0)
        rounded = onnx.load(file)
    properties = written.metadata | {"precision": "int8"}
    write_properties_(rounded, properties)
    record: dict[str, Any] = {
        "precision": "int8",
        "opset": opset_of(rounded),
        "input_format": input_format,
        "is_inlined": True,
        "model_sha256": tensors_sha256(model.state_dict()),
    }
    done = write_model(path, rounded, lambda sha256: ExportRecord(**record, sha256=sha256))
    return written.model_copy(
        update={
            "file": path.name,
            "precision": "int8",
            "opset": opset_of(rounded),
            "operators": dict(Counter(node.op_type for node in rounded.graph.node).most_common()),
            "types": operator_types(rounded),
            "size_bytes": done.size_bytes,
            "sha256": done.sha256,
            "metadata": properties,
            "sensitivity": sensitivity,
        }
    )


def _quantize(source: Path, target: Path, kept: Sequence[str]) -> None:
    try:
        with captured():
            from onnxruntime.quantization import QuantType, quantize_dynamic  # pyright: ignore

            quantize_dynamic(
                source,
                target,
                op_types_to_quantize=["MatMul", "Gemm"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(dict.fromkeys(kept)),
                # Of the products in attention no operand is known before.
                extra_options={"MatMulConstBOnly": True},
            )
    except Exception as error:  # of ONNX Runtime and onnx
        raise UnsupportedModelError(
            f"ONNX Runtime cannot quantise the model: {type(error).__name__}: {error}"
        ) from error
