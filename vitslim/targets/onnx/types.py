"""What precision a graph really computes in, read back from its types."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitslim.errors import CheckFailedError
from vitslim.runtime import Precision
from vitslim.targets.onnx.graph import nodes_between
from vitslim.targets.onnx.reading import read_header
from vitslim.targets.onnx.weights import without_weights

_FLOATS = {1: "float", 10: "float16", 16: "bfloat16", 11: "double"}  # of onnx.TensorProto
_WANTED: Mapping[Precision, int] = {"fp32": 1, "fp16": 10, "bf16": 16}
_FLOAT = 1

PRODUCTS = frozenset({"Conv", "Gemm", "MatMul", "Attention", "SparseAttention"})
"""Where the time goes; what a guaranteed precision is about."""

_SOFTMAXES = frozenset({"Softmax", "LogSoftmax"})
_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "GroupNormalization"})


def operator_types(file: Any) -> dict[str, dict[str, int]]:
    """How many nodes of each operator compute in each element type: ``{"MatMul": {"bfloat16": 24}}``.

    A node's type is that of its first float operand, or else of its result; nodes without floats are left out. Local
    functions are inlined first, so that their bodies count too; ``SparseAttention`` counts as the node that it is.

    Args:
        file: a path, or a loaded ``onnx.ModelProto``.

    Raises:
        CheckFailedError: the types of the graph contradict each other.
    """
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    model = _model(file)
    types = value_types(model)
    outer = [(node, types) for node in model.graph.node]
    for node, around in [*outer, *_body_nodes(model)]:
        kind = _type_of(node, around)
        if kind is not None:
            found[node.op_type][_FLOATS[kind]] += 1
    return {name: dict(counts) for name, counts in sorted(found.items())}


def require_precision(file: Any, precision: Precision, *, except_in: Sequence[str] = ()) -> None:
    """Refuse a graph that does not compute in its precision, see ``precision_errors``.

    Args:
        except_in: modules that are computed in float32, with what lies between them.

    Raises:
        CheckFailedError: with every node that breaks it.
    """
    errors = precision_errors(file, precision, except_in)
    if errors:
        shown = "; ".join(errors[:4]) + (f"; and {len(errors) - 4} more" if len(errors) > 4 else "")
        raise CheckFailedError(f"the graph does not compute in {precision}: {shown}")


def precision_errors(file: Any, precision: Precision, except_in: Sequence[str] = ()) -> list[str]:
    """What in a graph is not of the precision that is guaranteed, one sentence per node.

    Guaranteed are: every product (Conv, Gemm, MatMul, Attention, sparse attention) on the way to the outputs is of
    ``precision``; every softmax is float32 or says so for its insides; every normalisation accumulates in float32. What
    only chooses tokens or keys, that is, reaches the outputs through indices alone, may be float32: a choice that every
    runtime makes alike is worth more than its speed.

    Raises:
        CheckFailedError: the types of the graph contradict each other.
    """
    model = _model(file)
    types = value_types(model)
    on_the_way = _reaching_the_outputs(model, types) - (nodes_between(model, except_in) if except_in else set())
    wanted = _WANTED[precision]
    errors: list[str] = []
    for index, node in enumerate(model.graph.node):
        errors += _node_errors(node, types, wanted, index in on_the_way)
    for node, inner_types in _body_nodes(model):
        errors += _node_errors(node, inner_types, wanted, True)
    return errors


def type_errors(model: Any, opset: int) -> list[str]:
    """Operators that do not take the element type they are given, by ONNX's own definition at this opset."""
    import onnx

    types = value_types(model)
    errors: dict[str, None] = {}
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            continue
        schema = onnx.defs.get_schema(node.op_type, opset)
        for formal, name in zip(_formal_inputs(schema, len(node.input)), node.input, strict=True):
            kind = types.get(name)
            if kind is not None and _spelled(kind) not in formal.types:
                errors[f"{node.op_type} takes no {_spelled(kind)[7:-1]} at opset {opset} (node '{node.name}')"] = None
    return list(errors)


def value_types(model: Any) -> dict[str, int]:
    """The element type (a number of ``onnx.TensorProto``) of every value of a graph.

    Raises:
        CheckFailedError: they contradict each other.
    """
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(without_weights(model), strict_mode=False)
    except onnx.shape_inference.InferenceError as error:
        raise CheckFailedError(f"the types of the graph contradict each other: {error}") from error
    graph = inferred.graph
    types = {tensor.name: int(tensor.data_type) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = int(value.type.tensor_type.elem_type)
    return types


def _node_errors(node: Any, types: Mapping[str, int], wanted: int, on_the_way: bool) -> list[str]:
    kind = _type_of(node, types)
    if kind is None:
        return []
    name, given = f"'{node.name or node.op_type}'", _FLOATS[kind]
    if node.op_type in PRODUCTS and kind != wanted and on_the_way:
        return [f"{name} ({node.op_type}) computes in {given}, wanted {_FLOATS[wanted]}"]
    if node.op_type in _SOFTMAXES and kind != _FLOAT:
        return [f"{name} takes its softmax in {given}, wanted float"]
    if node.op_type == "Attention" and kind != _FLOAT and _number(node, "softmax_precision", kind) != _FLOAT:
        return [f"{name} takes its softmax in {given}, wanted softmax_precision = float"]
    if node.op_type in _NORMS and kind != _FLOAT and _number(node, "stash_type", _FLOAT) != _FLOAT:
        return [f"{name} accumulates in {given}, wanted stash_type = float"]
    return []


def _reaching_the_outputs(model: Any, types: Mapping[str, int]) -> set[int]:
    """Indices of the nodes whose float values reach an output other than through integers."""
    maker = {output: index for index, node in enumerate(model.graph.node) for output in node.output}
    todo = [value.name for value in model.graph.output]
    seen: set[int] = set()
    while todo:
        index = maker.get(todo.pop())
        if index is None or index in seen:
            continue
        seen.add(index)
        todo += [name for name in model.graph.node[index].input if types.get(name, _FLOAT) in _FLOATS]
    return seen


def _body_nodes(model: Any) -> list[tuple[Any, Mapping[str, int]]]:
    """The nodes inside local functions, once for every call, with the types around them."""
    if not model.functions:
        return []
    import onnx.inliner

    outer = {tuple(node.output): node.op_type for node in model.graph.node}
    inlined = onnx.inliner.inline_local_functions(without_weights(model))
    types = value_types(inlined)
    return [(node, types) for node in inlined.graph.node if outer.get(tuple(node.output)) != node.op_type]


def _type_of(node: Any, types: Mapping[str, int]) -> int | None:
    for name in (*node.input, *node.output):
        if types.get(name) in _FLOATS:
            return types[name]
    return None


def _formal_inputs(schema: Any, count: int) -> list[Any]:
    formals = list(schema.inputs)
    # The last one may stand for any number.
    return [formals[min(index, len(formals) - 1)] for index in range(count)]


def _spelled(kind: int) -> str:
    import onnx

    return f"tensor({onnx.TensorProto.DataType.Name(kind).lower()})"


def _number(node: Any, attribute: str, otherwise: int) -> int:
    return next((int(one.i) for one in node.attribute if one.name == attribute), otherwise)


def _model(file: Any) -> Any:
    return read_header(file) if isinstance(file, str | Path) else file
