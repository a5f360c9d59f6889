"""Counting the attentions in an ONNX graph."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

# What may stand between the two products of an attention and its softmax.
_BETWEEN = {
    "Mul",
    "Div",
    "Add",
    "Cast",
    "CastLike",
    "Where",
    "Reshape",
    "Transpose",
    "Identity",
    "Dropout",
    "Pad",
    "Slice",
}


def count_attentions(model: Any) -> int:
    """Attention nodes, and softmaxes between two products of images; a call of a function counts what it holds."""
    return attentions_in_calls(model) + _attentions_in(model.graph.node, [value.name for value in model.graph.input])


def attentions_in_calls(model: Any, domain: str | None = None) -> int:
    """Those inside the local functions that a graph calls; ``domain``: only of functions of that domain."""
    bodies = {
        (one.domain, one.name): _attentions_in(one.node, one.input)
        for one in model.functions
        if domain in (None, one.domain)
    }
    return sum(bodies.get((node.domain, node.op_type), 0) for node in model.graph.node)


def _attentions_in(nodes: Iterable[Any], inputs: Iterable[str]) -> int:
    nodes = list(nodes)
    computed = _computed(nodes, inputs)
    makers = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def before(node: Any) -> list[Any]:
        return [makers[name] for name in node.input if name in makers]

    def after(node: Any) -> list[Any]:
        return [reader for name in node.output for reader in readers.get(name, [])]

    return sum(
        (node.op_type == "Attention" and node.domain in ("", "ai.onnx"))
        or (node.op_type == "Softmax" and all(_meets_product(node, way, computed) for way in (before, after)))
        for node in nodes
    )


def _computed(nodes: Iterable[Any], inputs: Iterable[str]) -> set[str]:
    """The tensors that depend on what the images show, not on weights or sizes alone."""
    found = set(inputs)
    for node in nodes:
        if node.op_type not in ("Shape", "Size") and not found.isdisjoint(node.input):
            found.update(node.output)
    return found


def _meets_product(start: Any, neighbours: Callable[[Any], list[Any]], computed: set[str]) -> bool:
    queue, seen = deque([start]), {id(start)}
    while queue:
        for node in neighbours(queue.popleft()):
            if node.op_type in ("MatMul", "Einsum"):
                # With a weight it is a linear layer, as the selection of tokens has it.
                if computed.issuperset(node.input):
                    return True
            elif node.op_type in _BETWEEN and id(node) not in seen:
                seen.add(id(node))
                queue.append(node)
    return False
