"""Digests of an ONNX file's weights, and of everything else that it computes with."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def weights_sha256(model: Any, folder: Path) -> str:
    """One digest of all initializers: names, types, shapes, numbers.

    Args:
        model: an ONNX model.
        folder: where the weights lie that are not inside.
    """
    from onnx import numpy_helper

    digest = hashlib.sha256()
    for tensor in _sorted(model.graph.initializer):
        digest.update(_heading(tensor) + numpy_helper.to_array(tensor, str(folder)).tobytes())
    return digest.hexdigest()


def graph_sha256(model: Any) -> str:
    """One digest of nodes, functions, inputs, outputs, and of the weights all but the floating numbers in them.

    Two files in which it is the same differ in what training changes, and in nothing else.
    """
    from onnx import TensorProto, numpy_helper

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    digest = hashlib.sha256()
    for value in (*model.graph.input, *model.graph.output):
        digest.update(value.SerializeToString(deterministic=True))
    for tensor in _sorted(model.graph.initializer):
        digest.update(_heading(tensor))
        if tensor.data_type not in floats and not tensor.external_data:
            # Sizes and axes, which make another graph.
            digest.update(numpy_helper.to_array(tensor).tobytes())
    _add_nodes_(digest, model.graph.node)
    for function in _sorted(model.functions):
        digest.update(f"{function.domain} {function.name} {function.input} {function.output}".encode())
        _add_nodes_(digest, function.node)
    return digest.hexdigest()


def _add_nodes_(digest: Any, nodes: Iterable[Any]) -> None:
    for node in nodes:
        digest.update(f"{node.domain} {node.op_type} {list(node.input)} {list(node.output)}".encode())
        for attribute in _sorted(node.attribute):
            digest.update(attribute.SerializeToString(deterministic=True))


def _sorted(named: Iterable[Any]) -> list[Any]:
    return sorted(named, key=lambda one: one.name)


def _heading(tensor: Any) -> bytes:
    return f"{tensor.name} {tensor.data_type} {list(tensor.dims)} ".encode()
