"""Writing a model as one self-contained ONNX file."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from vitslim.errors import ConfigError, MissingDependencyError, UnsupportedModelError
from vitslim.export.metadata import artifact_metadata
from vitslim.export.onnx_graph import (
    check_graph,
    opset_of,
    strip_traces_,
    tensor_info,
    use_fp32_softmax_,
    write_properties_,
)
from vitslim.export.quiet import captured
from vitslim.export.result import OnnxExport
from vitslim.files import write_bytes
from vitslim.kernels import onnx_forms
from vitslim.models import preprocessing
from vitslim.runtime import Precision, working_copy
from vitslim.runtime.runner import DTYPES
from vitslim.runtime.torch_runner import output_name

OPSETS: dict[Precision, int] = {
    # From opset 23 on attention becomes the standard Attention op, which TensorRT does not build in fp32. At 20 it is
    # MatMul-Softmax-MatMul, which every runtime takes and fuses; 20 also has Gelu and LayerNormalization as one node.
    "fp32": 20,
    # In fp16 TensorRT does build the Attention op, into its fused kernel. It is also the only form in which the file
    # itself can ask for a float32 softmax. onnxruntime has it since 1.23; for an older runtime pass opset=20.
    "fp16": 23,
}

_TRACED_BATCH = 2  # torch.export takes a batch of 0 or 1 for a constant
_FILE_LIMIT = 2**31  # protobuf's limit for one message


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    precision: Precision = "fp32",
    batch: Literal["dynamic"] | int = "dynamic",
    opset: int | None = None,
    fp32_ends: bool = True,
    optimize: bool = True,
    metadata: Mapping[str, Any] | None = None,
) -> OnnxExport:
    """Write ``model`` as ONNX: input ``images``, output ``logits`` (``features`` without a classifier).

    The given model stays as it is; a copy on the CPU is traced, without running it. The file is checked before it
    replaces an older one.

    Args:
        model: dense or converted; the file takes images of the model's own size.
        path: of the ``.onnx`` file.
        precision: of weights and arithmetic. In fp16, LayerNorm accumulates in float32, from opset 23 on softmax too.
        batch: ``"dynamic"``, or the one number of images the file takes.
        opset: ONNX operator set; ``None`` for the one that ``OPSETS`` gives the precision, with its reason.
        fp32_ends: in fp16, whether images and logits stay float32, with casts inside the file.
        optimize: whether onnxslim simplifies the graph.
        metadata: further entries (base model, labels, metrics), see ``artifact_metadata``.

    Raises:
        MissingDependencyError: onnx, onnxscript or onnxslim is not installed.
        ConfigError: a precision without an opset, weights beyond the 2 GB of one ONNX file, metadata that contradicts
            the exporter.
        UnsupportedModelError: torch cannot trace the model, or its batch is not free.
        CheckFailedError: the graph is not valid ONNX.
    """
    _check_dependencies(optimize)
    if precision not in OPSETS:
        # onnxruntime's CPU provider, on which every file is verified, has few bf16 kernels.
        raise ConfigError(f"ONNX export in {precision} is not offered; choose from {', '.join(OPSETS)}")
    properties = artifact_metadata(model, precision, metadata or {})
    opset = OPSETS[precision] if opset is None else opset
    _check_weights(model, precision)
    copy = working_copy(model).cpu().to(DTYPES[precision])
    if precision == "fp16" and fp32_ends:
        _keep_fp32_ends_(copy)
    with captured() as log:
        graph = _trace(copy, _example(model, precision, fp32_ends, batch), batch == "dynamic", opset)
        if optimize:
            graph = _slim(graph)
    strip_traces_(graph)
    use_fp32_softmax_(graph)
    write_properties_(graph, properties)
    check_graph(graph, batch)
    content = graph.SerializeToString()
    write_bytes(path, content)
    return OnnxExport(
        file=Path(path).name,
        precision=precision,
        opset=opset_of(graph),
        batch=batch,
        inputs=[tensor_info(value) for value in graph.graph.input],
        outputs=[tensor_info(value) for value in graph.graph.output],
        operators=dict(Counter(node.op_type for node in graph.graph.node).most_common()),
        optimized=optimize,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        metadata=properties,
        log=list(dict.fromkeys(log)),
    )


def _check_dependencies(optimize: bool) -> None:
    wanted = ["onnx", "onnxscript", *(["onnxslim"] if optimize else [])]
    missing = [name for name in wanted if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"ONNX export needs {', '.join(missing)}: pip install 'vitslim[onnx]'")


def _check_weights(model: nn.Module, precision: Precision) -> None:
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ConfigError("the model lies on the meta device and has no weights; load some before exporting")
    size = sum(tensor.numel() for tensor in model.state_dict().values()) * DTYPES[precision].itemsize
    if size >= _FILE_LIMIT:
        raise ConfigError(
            f"the weights take {size / 1e9:.1f} GB, one ONNX file holds 2.1 GB; export in fp16 or a smaller model"
        )


def _keep_fp32_ends_(model: nn.Module) -> None:
    # As hooks on our copy rather than a module around it: the weights keep timm's names in the file.
    def to_half(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        return (inputs[0].half(),)

    def to_float(_: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
        return output.float()

    model.register_forward_pre_hook(to_half)
    model.register_forward_hook(to_float)


def _example(model: nn.Module, precision: Precision, fp32_ends: bool, batch: Literal["dynamic"] | int) -> Tensor:
    image = preprocessing(model)
    images = _TRACED_BATCH if batch == "dynamic" else batch
    dtype = torch.float32 if fp32_ends else DTYPES[precision]
    return torch.zeros(images, image.channels, *image.image_size, dtype=dtype)


def _trace(model: nn.Module, images: Tensor, dynamic: bool, opset: int) -> Any:
    try:
        program = torch.onnx.export(
            model,
            (images,),
            dynamo=True,
            opset_version=opset,
            input_names=["images"],
            output_names=[output_name(model)],
            dynamic_shapes=({0: torch.export.Dim("batch")},) if dynamic else None,
            custom_translation_table=dict(onnx_forms()),
            verbose=False,
        )
    except Exception as error:  # torch raises a new class for every stage of the export
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UnsupportedModelError(
            f"torch.onnx cannot export this {type(model).__name__}: {type(error).__name__}: {' '.join(lines[:3])}"
        ) from error
    return cast(Any, program).model_proto


def _slim(graph: Any) -> Any:
    import onnxslim  # pyright: ignore[reportMissingTypeStubs]

    return cast(Any, onnxslim.slim(graph))
