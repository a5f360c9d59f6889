"""Running a graph in half precision where nothing computes in it.

ONNX Runtime's CPU provider (1.31) has no bfloat16 kernels for most operators: the first Conv of a vision transformer is
refused. float16 it computes in float32, operator after operator without rounding between them, so that a value beyond
65,504 passes there and is infinite on a GPU. A float32 copy of the graph can round after every operator: what hardware
with inputs in half precision, float32 sums and results in half precision computes.
"""

from typing import Any

from vitslim.targets.onnx.types import value_types

_FLOAT, _HALVES = 1, (10, 16)  # of onnx.TensorProto
_MOVES = frozenset(
    {"Concat", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Pad", "Reshape", "Shape", "Slice", "Split"}
    | {"Squeeze", "Tile", "Transpose", "Unsqueeze"}
)
"""Operators whose results are values that were rounded before."""


def rounding_copy(model: Any) -> Any:
    """A float32 graph that rounds wherever ``model`` has a value in half precision; functions are inlined.

    Inside one operator, such as Attention, nothing is rounded. Inputs and outputs in half precision become float32.
    """
    import onnx
    import onnx.inliner

    copy = onnx.inliner.inline_local_functions(model)
    types = value_types(copy)
    graph = copy.graph
    for tensor in graph.initializer:
        _widen(tensor)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _HALVES:
            value.type.tensor_type.elem_type = _FLOAT
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        _widen_attributes(node)
        rounded = [name for name in node.output if types.get(name) in _HALVES and node.op_type not in _MOVES]
        for index, name in enumerate(node.output):
            if name in rounded:
                node.output[index] = f"{name}/exact"
        graph.node.append(node)
        for name in rounded:
            graph.node.append(onnx.helper.make_node("Cast", [f"{name}/exact"], [f"{name}/rounded"], to=types[name]))
            graph.node.append(onnx.helper.make_node("Cast", [f"{name}/rounded"], [name], to=_FLOAT))
    return copy


def _widen(tensor: Any) -> None:
    if tensor.data_type not in _HALVES:
        return
    import numpy as np
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _widen_attributes(node: Any) -> None:
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _HALVES:
            attribute.i = _FLOAT
        if attribute.HasField("t"):
            _widen(attribute.t)
