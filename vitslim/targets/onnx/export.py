"""Writing a model as one self-contained ONNX file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitslim.arguments import checked
from vitslim.errors import ConfigError, MissingDependencyError
from vitslim.models import preprocessing
from vitslim.models.digest import tensors_sha256
from vitslim.runtime import Precision, working_copy
from vitslim.runtime.runner import DTYPES
from vitslim.shapes import AnyPath, AtLeastOne
from vitslim.targets.input_format import INPUT_FORMATS, InputFormat, normalize_inside_, spatial_axes
from vitslim.targets.metadata import artifact_metadata
from vitslim.targets.onnx.free_sizes import any_size, image_axes, probe_sizes, require_free_sizes
from vitslim.targets.onnx.graph import (
    add_sparse_attention_,
    check_graph,
    compute_in_fp32_,
    inlined,
    name_after_modules_,
    opset_of,
    strip_traces_,
    tensor_info,
    use_fp32_softmax_,
    write_properties_,
)
from vitslim.targets.onnx.result import OnnxExport
from vitslim.targets.onnx.slimming import require_same_numbers, slimmed
from vitslim.targets.onnx.trace import traced
from vitslim.targets.onnx.types import operator_types, require_precision, type_errors, value_types
from vitslim.targets.onnx.weights import DATA_DIGEST, is_large, write_model
from vitslim.targets.quiet import captured
from vitslim.targets.record import ExportRecord

OPSETS: dict[Precision, int] = {
    # The oldest with Gelu and LayerNormalization as one node. Attention is MatMul-Softmax-MatMul, with casts around a
    # softmax in float32: every runtime takes that, and TensorRT fuses it into one kernel in half precision.
    "fp32": 20,
    "fp16": 20,
    # Conv takes bfloat16 from 22 on.
    "bf16": 22,
}
"""The opset of a file when none is asked for: one that every runtime takes in this precision.

From 23 on torch writes attention as one operator, which fewer runtimes take. ONNX Runtime has it since 1.23. TensorRT
has it since 10.14, not in fp32, and its parser refuses ``softmax_precision``, without which half precision would not
guarantee a softmax in float32: our own engine builder takes the attribute off, ``trtexec --onnx`` fails on it.
"""
OLDEST_OPSET = 18  # of the operators that the custom ops are spelled out in

_TRACED_BATCH = 2  # torch.export takes a batch of 0 or 1 for a constant


@checked
def export_onnx(
    model: nn.Module,
    path: AnyPath,
    *,
    precision: Precision = "fp32",
    batch: Literal["dynamic"] | AtLeastOne = "dynamic",
    opset: AtLeastOne | None = None,
    fp32_ends: bool = True,
    optimize: bool = True,
    inline: bool = False,
    dynamic_image_size: bool = False,
    input_format: InputFormat = "normalized",
    fp32_modules: Sequence[str] = (),
    metadata: Mapping[str, Any] | None = None,
) -> OnnxExport:
    """Write ``model`` as ONNX: input ``images``, output ``logits`` (``features`` without a classifier).

    The given model stays as it is; a copy on the CPU is traced, without running it. The graph is checked before it
    replaces an older file: valid ONNX, computing in the asked precision, with the numbers it had before onnxslim.
    Weights beyond the 2 GB of one file lie beside it in ``PATH.data``, and what was guaranteed in ``PATH.json``, which
    ``verify`` reads.

    Sparse attention becomes nodes ``vitslim::SparseAttention``, which a TensorRT plugin may take, with a local function
    of that name, which every other runtime inlines.

    Args:
        model: dense or converted; the file takes images of the model's own size.
        path: of the ``.onnx`` file.
        precision: of weights and arithmetic, strongly typed. LayerNorm and softmax are float32 inside in each.
        batch: ``"dynamic"``, or the one number of images the file takes.
        opset: ONNX operator set, 18 or newer; ``None`` for the one that every runtime takes, see ``OPSETS``.
        fp32_ends: in half precision, whether images and logits stay float32, with casts inside the file.
        optimize: whether onnxslim simplifies the graph; left out for weights beyond 2 GB.
        inline: write the local function out at each node, for runtimes that know no functions.
        dynamic_image_size: leave height and width free, in multiples of the patch size; for models whose positions are
            resampled (VisionTransformer, DeiT) and whose conversion needs no constants (SkipAt, SReT without slices).
        input_format: ``"normalized"``; or bytes, ``"uint8-nchw"`` or ``"uint8-nhwc"``, whose scale, mean and std are
            then applied inside the file. Resizing is the caller's in every case.
        fp32_modules: in half precision, modules that are computed in float32 with all that lies between them, such as
            ``blocks.7.attn``, whose values float16 cannot hold; ``verify --bisect`` names them.
        metadata: further entries (base model, labels, metrics), see ``artifact_metadata``.

    Raises:
        MissingDependencyError: onnx, onnxscript, onnxslim or onnxruntime is not installed.
        ConfigError: an opset that has not the operators in this precision, metadata that contradicts the exporter, a
            module that is not there.
        UnsupportedModelError: torch cannot trace the model, or its batch or size is not free; the module is named.
        CheckFailedError: the graph is not valid ONNX, computes in another precision, or onnxslim changed its numbers.
        CheckpointError: the file cannot be written; an older one stays as it was.
    """
    _check_dependencies(optimize or dynamic_image_size)
    opset = _checked_opset(opset, precision)
    if input_format not in INPUT_FORMATS:
        raise ConfigError(f"input_format={input_format!r} is not known; choose from {', '.join(INPUT_FORMATS)}")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ConfigError("the model lies on the meta device and has no weights; load some before exporting")
    properties = artifact_metadata(model, precision, metadata or {}, input_format=input_format)
    axes: dict[int, Any] = {0: torch.export.Dim("batch")} if batch == "dynamic" else {}
    if dynamic_image_size:
        model = any_size(model)
        axes |= image_axes(model, input_format)
    example = _example(model, precision, fp32_ends, batch, dynamic_image_size, input_format)
    with captured() as log:
        graph, optimized, notes = _made(
            _prepared(model, precision, fp32_ends, input_format),
            example,
            axes,
            precision,
            opset,
            optimize,
            inline,
            () if precision == "fp32" else fp32_modules,
        )
    write_properties_(graph, properties)
    errors = type_errors(graph, opset)
    if errors:
        raise ConfigError(f"opset {opset} cannot say this in {precision}: {errors[0]}; use {OPSETS[precision]}")
    check_graph(graph, _named(axes, input_format), None if batch == "dynamic" else batch)
    require_precision(graph, precision, except_in=fp32_modules)
    if dynamic_image_size:
        require_free_sizes(
            graph, _prepared(model, "fp32", True, input_format), probe_sizes(model), precision, input_format
        )
    guaranteed: dict[str, Any] = {
        "precision": precision,
        "opset": opset_of(graph),
        "input_format": input_format,
        "is_inlined": not graph.functions,
        "model_sha256": tensors_sha256(model.state_dict()),
    }
    written = write_model(path, graph, lambda sha256: ExportRecord(**guaranteed, sha256=sha256))
    return OnnxExport(
        file=Path(path).name,
        precision=precision,
        opset=opset_of(graph),
        batch=batch,
        inputs=[tensor_info(graph.graph.input[0])],
        outputs=[tensor_info(value) for value in graph.graph.output],
        operators=dict(Counter(node.op_type for node in graph.graph.node).most_common()),
        functions=[f"{function.domain}::{function.name}" for function in graph.functions],
        types=operator_types(graph),
        optimized=optimized,
        size_bytes=written.size_bytes,
        sha256=written.sha256,
        data_file=written.data_file,
        data_bytes=written.data_bytes,
        metadata=properties | ({DATA_DIGEST: written.data_sha256} if written.data_sha256 else {}),
        notes=[*notes, *_notes(graph, precision)],
        log=list(dict.fromkeys(log)),
    )


def check_export(
    model: nn.Module,
    precision: Precision,
    *,
    opset: int | None = None,
    optimize: bool = True,
    dynamic_image_size: bool = False,
) -> None:
    """Refuse what ``export_onnx`` refuses before it traces; the model may lie on the meta device.

    Raises:
        MissingDependencyError, ConfigError, UnsupportedModelError: as ``export_onnx`` does.
    """
    _check_dependencies(optimize or dynamic_image_size)
    _checked_opset(opset, precision)
    if dynamic_image_size:
        any_size(model)


def _named(axes: Mapping[int, Any], input_format: InputFormat) -> dict[int, str]:
    names = dict(zip((0, *spatial_axes(input_format)), ("batch", "height", "width"), strict=True))
    return {axis: names[axis] for axis in axes}


def _made(
    model: nn.Module,
    example: Tensor,
    axes: Mapping[int, Any],
    precision: Precision,
    opset: int,
    optimize: bool,
    inline: bool,
    wide: Sequence[str],
) -> tuple[Any, bool, list[str]]:
    """The graph, whether onnxslim simplified it, and notes."""
    graph = traced(model, example, axes, opset, sparse_nodes=True)
    name_after_modules_(graph)
    strip_traces_(graph)
    has_nodes = add_sparse_attention_(graph, opset)
    if inline and has_nodes:
        graph = inlined(graph)
    use_fp32_softmax_(graph, value_types(graph))
    if wide:
        compute_in_fp32_(graph, wide, value_types(graph))
    if not optimize:
        return graph, False, []
    if is_large(graph):
        return graph, False, ["onnxslim was left out: it holds a graph in one message of at most 2 GB"]
    # Bytes everywhere between the smallest and the largest, or noise.
    shape, raw = example.shape, example.dtype == torch.uint8
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(shape, generator=generator) * 255 if raw else torch.randn(shape, generator=generator)
    slim = slimmed(graph)
    require_same_numbers(graph, slim, noise.to(example.dtype), precision)
    return slim, True, []


def _check_dependencies(runs: bool) -> None:
    wanted = ["onnx", "onnxscript", *(["onnxslim", "onnxruntime"] if runs else [])]
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"ONNX export needs {', '.join(missing)}: pip install 'vitslim[onnx]'")


def _checked_opset(opset: int | None, precision: Precision) -> int:
    if precision not in OPSETS:
        raise ConfigError(f"precision {precision!r} is not one; choose from {', '.join(OPSETS)}")
    if opset is None:
        return OPSETS[precision]
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise ConfigError(
            f"opset {opset}: wanted {OLDEST_OPSET} to {newest} (this onnx's newest); {precision} is written at "
            f"{OPSETS[precision]} when nothing is given"
        )
    return opset


def _prepared(model: nn.Module, precision: Precision, fp32_ends: bool, input_format: InputFormat) -> nn.Module:
    copy = working_copy(model).cpu().to(DTYPES[precision])
    # As hooks on our copy rather than a module around it: the weights keep timm's names in the file.
    if input_format != "normalized":
        normalize_inside_(copy, preprocessing(model), input_format, DTYPES[precision])
    elif precision != "fp32" and fp32_ends:
        copy.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(DTYPES[precision]),))
    if precision != "fp32" and fp32_ends:
        copy.register_forward_hook(lambda _, __, output: output.float())
    return copy


def _example(
    model: nn.Module,
    precision: Precision,
    fp32_ends: bool,
    batch: Literal["dynamic"] | int,
    dynamic_image_size: bool,
    input_format: InputFormat,
) -> Tensor:
    image = preprocessing(model)
    # Sides that differ from each other and from the model's own, so that the trace takes none of them for a constant.
    height, width = probe_sizes(model)[0] if dynamic_image_size else image.image_size
    count = _TRACED_BATCH if batch == "dynamic" else batch
    shape = (height, width, image.channels) if input_format == "uint8-nhwc" else (image.channels, height, width)
    ends = torch.float32 if fp32_ends else DTYPES[precision]
    return torch.zeros(count, *shape, dtype=ends if input_format == "normalized" else torch.uint8)


def _notes(graph: Any, precision: Precision) -> list[str]:
    if all(node.op_type != "Attention" for node in graph.graph.node):
        return []
    why = (
        "which TensorRT does not build in fp32"
        if precision == "fp32"
        else "whose softmax_precision TensorRT's parser refuses (`vitslim export --to tensorrt` takes it off)"
    )
    return [
        f"at opset {opset_of(graph)} attention is the standard Attention operator, {why}; opset {OPSETS[precision]}, "
        "the default, runs everywhere"
    ]
