"""Finishing an exported graph: what it says, what it keeps to itself, whether it holds."""

import re
from ast import literal_eval
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vitslim.errors import CheckFailedError, ConfigError, UnsupportedModelError
from vitslim.kernels.onnx_function import ATTENTION, DOMAIN, sparse_attention_function
from vitslim.runtime.versions import library_versions
from vitslim.targets.onnx.result import TensorInfo
from vitslim.targets.onnx.weights import without_weights


def strip_traces_(model: Any) -> None:
    """Drop what the exporter notes about our source: on every node a stack trace with this machine's paths."""
    graph = model.graph
    for node in (*graph.node, *(node for function in model.functions for node in function.node)):
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for noted in (model, graph, *model.functions, *graph.input, *graph.output, *graph.value_info):
        del noted.metadata_props[:]


def name_after_modules_(model: Any) -> None:
    """Name every node after the module it came from, ``blocks.3.attn/MatMul``: what a parser refuses can be found.

    The exporter's notes are read, so this comes before ``strip_traces_``.
    """
    seen: Counter[str] = Counter()
    for node in model.graph.node:
        notes = {note.key: note.value for note in node.metadata_props}
        scopes: list[str] = literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        # The last one is the traced call itself, the first the model.
        module = next((scope for scope in reversed(scopes[:-1]) if scope and not scope.startswith("_")), "model")
        name = f"{module}/{node.op_type}"
        node.name = f"{name}.{seen[name]}" if seen[name] else name
        seen[name] += 1


def constants_as_tensors_(model: Any) -> None:
    """Write every Constant node's plain numbers as a tensor, whose type nobody can mistake."""
    import numpy as np
    import onnx

    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    for node in model.graph.node:
        if node.op_type != "Constant" or node.attribute[0].name not in kinds:
            continue
        given = node.attribute[0]
        values = np.array(onnx.helper.get_attribute_value(given), dtype=kinds[given.name])
        del node.attribute[:]
        node.attribute.append(onnx.helper.make_attribute("value", onnx.numpy_helper.from_array(values)))


def add_sparse_attention_(model: Any, opset: int) -> bool:
    """Add the function that the graph's ``SparseAttention`` nodes stand for; whether there are any."""
    has_nodes = any(node.domain == DOMAIN and node.op_type == ATTENTION for node in model.graph.node)
    if has_nodes:
        model.functions.append(sparse_attention_function(opset))
    return has_nodes


def inlined(model: Any) -> Any:
    """The model with its local functions written out at each call; it uses standard operators only."""
    import onnx.inliner

    plain = onnx.inliner.inline_local_functions(model)
    kept = [entry for entry in plain.opset_import if entry.domain != DOMAIN]
    del plain.opset_import[:]
    plain.opset_import.extend(kept)
    return plain


def choosing_nodes(model: Any) -> list[Any]:
    """The nodes whose indices depend on scores, in the order in which the model chooses.

    A TopK of the smallest is none of them: it turns a permutation round.
    """
    found: list[tuple[int, Any]] = []
    for node in model.graph.node:
        of_smallest = any(one.name == "largest" and one.i == 0 for one in node.attribute)
        if node.op_type == "ArgMax" or (node.op_type == "TopK" and not of_smallest):
            # The graph may have a step's choice before one of the step before, on which it does not depend.
            step = re.search(r"\bsteps\.(\d+)", node.name)
            found.append((int(step.group(1)) if step else found[-1][0] if found else 0, node))
    return [node for _, node in sorted(found, key=lambda one: one[0])]


def choices_told(model: Any) -> Any:
    """The same graph; its outputs are also what is chosen, in the order in which the model does.

    That is their indices; where only the values of a TopK are used, as a threshold, what is above it.
    """
    import onnx

    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    there = {output.name for output in model.graph.output}
    for node in choosing_nodes(model):
        name, kind = node.output[-1], onnx.TensorProto.INT64
        if node.op_type == "TopK" and name not in readers:
            name, kind = _compared_with(node.output[0], readers), onnx.TensorProto.BOOL
        if name and name not in there:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, kind, None))
    return model


def _compared_with(name: str, readers: Mapping[str, list[Any]]) -> str | None:
    """What comes of the first comparison with a value, through whatever takes a part of it."""
    waiting = [name]
    while waiting:
        for node in readers.get(waiting.pop(), []):
            if node.op_type in ("GreaterOrEqual", "LessOrEqual", "Greater", "Less"):
                return node.output[0]
            waiting.extend(node.output)
    return None


def choosing_products(model: Any) -> list[str]:
    """Names of the products from which scores come that are sorted: rounding there would choose other tokens.

    Nodes without a name are given one.
    """
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    makers = {name: node for node in model.graph.node for name in node.output}
    found: dict[str, None] = {}
    seen: set[str] = set()
    waiting = [node.input[0] for node in model.graph.node if node.op_type == "TopK"]
    while waiting:
        maker = makers.get(waiting.pop())
        if maker is None or maker.name in seen:
            continue
        seen.add(maker.name)
        if maker.op_type == "MatMul":
            found[maker.name] = None
        else:
            waiting += maker.input
    return list(found)


def use_fp32_softmax_(model: Any, types: Mapping[str, int]) -> None:
    """Let every softmax be taken in float32: by an attribute in Attention, between casts elsewhere.

    Args:
        types: element type of every value, see ``onnx_types.value_types``.
    """
    # LayerNormalization already says stash_type = 1; Attention says nothing, which means the type of q and k.
    import onnx

    float32 = onnx.TensorProto.FLOAT
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        if node.op_type == "Attention" and all(given.name != "softmax_precision" for given in node.attribute):
            node.attribute.append(onnx.helper.make_attribute("softmax_precision", float32))
        kind = types.get(node.input[0], float32) if node.op_type in ("Softmax", "LogSoftmax") else float32
        if kind == float32:
            model.graph.node.append(node)
            continue
        source, result = node.input[0], node.output[0]
        node.input[0], node.output[0] = f"{result}/wide_scores", f"{result}/wide_rows"
        widen = onnx.helper.make_node("Cast", [source], [node.input[0]], f"{node.name}/widen", to=float32)
        narrow = onnx.helper.make_node("Cast", [node.output[0]], [result], f"{node.name}/narrow", to=kind)
        model.graph.node.extend([widen, node, narrow])


def compute_in_fp32_(model: Any, modules: Sequence[str], types: Mapping[str, int]) -> None:
    """Compute some modules in float32, and whatever lies on a way from one of their nodes to another.

    Args:
        modules: by name; all that is inside them counts.
        types: element type of every value, see ``onnx_types.value_types``.

    Raises:
        ConfigError: no node is named after a module.
    """
    import onnx

    nodes = list(model.graph.node)
    for module in modules:
        if not any(_is_inside(node.name, [module]) for node in nodes):
            raise ConfigError(
                f"fp32_modules: nothing in the graph belongs to {module!r}; wanted one such as blocks.0.attn"
            )
    wide = nodes_between(model, modules)
    float32, halves = onnx.TensorProto.FLOAT, (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    made = {name for index in wide for name in nodes[index].output if types.get(name) in halves}
    given = {name for index in wide for name in nodes[index].input if types.get(name) in halves} - made
    del model.graph.node[:]
    widened: set[str] = set()
    for index, node in enumerate(nodes):
        if index not in wide:
            model.graph.node.append(node)
            continue
        for place, name in enumerate(node.input):
            if name not in given and name not in made:
                continue
            node.input[place] = f"{name}/wide"
            if name in given and name not in widened:
                widened.add(name)
                cast = onnx.helper.make_node("Cast", [name], [f"{name}/wide"], f"{name}/widen", to=float32)
                model.graph.node.append(cast)
        narrow: list[Any] = []
        for place, name in enumerate(node.output):
            if name in made:
                node.output[place] = f"{name}/wide"
                cast = onnx.helper.make_node("Cast", [f"{name}/wide"], [name], f"{name}/narrow", to=types[name])
                narrow.append(cast)
        if node.op_type == "Cast":
            for attribute in node.attribute:
                attribute.i = float32 if attribute.name == "to" and attribute.i in halves else attribute.i
        model.graph.node.extend([node, *narrow])
    del model.graph.value_info[:]


def nodes_between(model: Any, modules: Sequence[str]) -> set[int]:
    """Indices of the nodes of some modules, and of those on a way from one of them to another."""
    nodes = list(model.graph.node)
    own = [index for index, node in enumerate(nodes) if _is_inside(node.name, modules)]
    behind = _reached([(node.input, node.output) for node in nodes], own)
    last = len(nodes) - 1
    before = _reached([(node.output, node.input) for node in reversed(nodes)], [last - index for index in own])
    return behind & {last - index for index in before}


def _is_inside(name: str, modules: Sequence[str]) -> bool:
    """Whether a node is named after one of some modules, or after one inside it."""
    return any(name.startswith((f"{module}/", f"{module}.")) for module in modules)


def _reached(nodes: Sequence[tuple[Sequence[str], Sequence[str]]], own: Sequence[int]) -> set[int]:
    """Indices of the nodes, given by what they take and give, to which a way leads from some of them."""
    given: set[str] = set()
    found = {*own}
    for index, (taken, made) in enumerate(nodes):
        if index in found or not given.isdisjoint(taken):
            found.add(index)
            given.update(name for name in made if name)
    return found


def write_properties_(model: Any, properties: Mapping[str, str]) -> None:
    """Write ``properties`` into the file, where every ONNX runtime can read them."""
    import onnx

    model.producer_name = "vitslim"
    model.producer_version = library_versions()["vitslim"] or ""
    onnx.helper.set_model_props(model, dict(properties))


def check_graph(model: Any, axes: Mapping[int, str], batch: int | None) -> None:
    """Refuse a graph that is not valid ONNX, or whose free axes are not the ones that were asked for.

    Args:
        axes: the free axes of the images, with their names in messages.
        batch: of a file whose batch is fixed.

    Raises:
        CheckFailedError: onnx's checker or its shape inference finds an error.
        UnsupportedModelError: an axis is free that should not be, or fixed by the model's forward.
    """
    import onnx

    try:
        onnx.checker.check_model(without_weights(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CheckFailedError(f"the exported graph is not valid ONNX, nothing was written: {error}") from error
    images, result = model.graph.input[0], model.graph.output[0]
    wanted = {0: axes.get(0, batch)}
    for value, sizes in ((images, wanted | dict(axes)), (result, wanted)):
        for axis, name in sizes.items():
            given = value.type.tensor_type.shape.dim[axis]
            if isinstance(name, str) != bool(given.dim_param):
                raise UnsupportedModelError(
                    f"'{value.name}' has {given.dim_param or given.dim_value} at axis {axis}, wanted "
                    f"{f'a free {name}' if isinstance(name, str) else name}: the model's forward fixes "
                    f"the {name if isinstance(name, str) else 'batch'}; nothing was written"
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
