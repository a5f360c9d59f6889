"""Finishing an exported graph: what it says, what it keeps to itself, whether it holds."""

from collections.abc import Mapping
from typing import Any, Literal

from vitslim.errors import CheckFailedError, UnsupportedModelError
from vitslim.export.result import TensorInfo
from vitslim.runtime.versions import library_versions


def strip_traces_(model: Any) -> None:
    """Drop what the exporter notes about our source: on every node a stack trace with this machine's paths."""
    graph = model.graph
    for node in (*graph.node, *(node for function in model.functions for node in function.node)):
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for noted in (model, graph, *model.functions, *graph.input, *graph.output, *graph.value_info):
        del noted.metadata_props[:]


def use_fp32_softmax_(model: Any) -> None:
    """Let every Attention op take its softmax in float32."""
    # LayerNormalization already says stash_type = 1; Attention says nothing, which means the type of q and k.
    import onnx

    for node in model.graph.node:
        if node.op_type == "Attention" and all(given.name != "softmax_precision" for given in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("softmax_precision", onnx.TensorProto.FLOAT))


def write_properties_(model: Any, properties: Mapping[str, str]) -> None:
    """Write ``properties`` into the file, where every ONNX runtime can read them."""
    import onnx

    model.producer_name = "vitslim"
    model.producer_version = library_versions()["vitslim"] or ""
    onnx.helper.set_model_props(model, dict(properties))


def check_graph(model: Any, batch: Literal["dynamic"] | int) -> None:
    """Refuse a graph that is not valid ONNX, or whose batch is not what was asked for.

    Raises:
        CheckFailedError: onnx's checker or its shape inference finds a fault.
        UnsupportedModelError: the batch of the input or output is not ``batch``.
    """
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckFailedError(f"the exported graph is not valid ONNX, nothing was written: {error}") from error
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if (batch == "dynamic") != bool(first.dim_param):
            raise UnsupportedModelError(
                f"'{value.name}' has batch {first.dim_param or first.dim_value}, wanted {batch}: "
                "the model's forward fixes the batch; nothing was written"
            )


def opset_of(model: Any) -> int:
    """The version of the standard operator set that the graph uses."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def tensor_info(value: Any) -> TensorInfo:
    """An input or output as plain data."""
    import onnx

    tensor = value.type.tensor_type
    shape = [None if size.dim_param else int(size.dim_value) for size in tensor.shape.dim]
    return TensorInfo(name=value.name, shape=shape, dtype=onnx.TensorProto.DataType.Name(tensor.elem_type).lower())
