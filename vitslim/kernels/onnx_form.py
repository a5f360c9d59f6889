"""The custom ops as an ONNX graph: spelled out in standard operators, or as a node that a plugin may take."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

from vitslim.kernels.onnx_function import ATTENTION, DOMAIN, FLOAT_TYPES, HIDDEN, PLUGIN_ATTRIBUTES, VERSION
from vitslim.kernels.sparse_attention import FEWEST_QUERIES, WIDEST_HEAD, WIDTH_MULTIPLE, tile_count

_INT32 = 6  # of onnx.TensorProto

_FIRST = 1e30
"""Added to the scores of tokens that are kept always; beyond any sum of probabilities."""


def onnx_forms(*, nodes: bool = False) -> Mapping[Any, Callable[..., Any]]:
    """For ``custom_translation_table`` of torch.onnx: each op, and the function that writes it as a graph.

    The functions read all sizes but the batch from the graph, so that they are constants in the file.

    Args:
        nodes: write sparse attention as one node ``vitslim::SparseAttention`` where that can say all of it. The file
            then needs the function that ``onnx_function.sparse_attention_function`` gives.
    """
    ops = torch.ops.vitslim
    attention = _sparse_attention_node if nodes else _sparse_attention
    return {ops.sparse_attention.default: attention, ops.kept_keys.default: _kept_keys}


def _sparse_attention_node(
    query: Any, key: Any, value: Any, kept: Any, bias: Any, tile: int, prefix: int, scale: float
) -> Any:
    # The node has no bias, and one head width for all operands; fewer queries or odd widths are not worth a kernel.
    same = tuple(key.shape) == tuple(query.shape) == tuple(value.shape)
    fits = tile >= FEWEST_QUERIES and query.shape[3] <= WIDEST_HEAD and query.shape[3] % WIDTH_MULTIPLE == 0
    if bias is not None or not same or not fits:
        return _sparse_attention(query, key, value, kept, bias, tile, prefix, scale)
    op, _ = _operators()
    # TensorRT's plugins read int32; TopK gives int64.
    kept = op.Cast(kept, to=_INT32)
    return _node_writer()(query, key, value, kept, tile=tile, prefix=prefix, scale=scale, **PLUGIN_ATTRIBUTES)


def _sparse_attention(
    query: Any, key: Any, value: Any, kept: Any, bias: Any, tile: int, prefix: int, scale: float
) -> Any:
    op, float32 = _operators()
    tokens, patches = key.shape[2], query.shape[2] - prefix
    scores = op.MatMul(op.Mul(query, scale), op.Transpose(key, perm=[0, 1, 3, 2]))
    # A softmax in float32, whatever the file's precision.
    scores = op.Cast(scores, to=float32)
    if bias is not None:
        scores = op.Add(scores, op.Cast(bias, to=float32))
    # Zeros at the kept keys of each tile, in a matrix of hidden ones.
    shape = op.Concat(op.Shape(kept, start=0, end=3), op.Constant(value_ints=[tokens]), axis=0)
    zeros = op.Expand(op.Constant(value_float=0.0), op.Shape(kept))
    mask = op.ScatterElements(op.Expand(op.Constant(value_float=HIDDEN), shape), kept, zeros, axis=3)
    if tile > 1:
        tiles = tile_count(patches, tile)
        repeated = op.Tile(op.Unsqueeze(mask, [3]), [1, 1, 1, tile, 1])
        mask = op.Slice(op.Reshape(repeated, [0, 0, tiles * tile, tokens]), [0], [patches], [2])
    # The prefix queries read every key.
    mask = op.Pad(mask, [0, 0, prefix, 0, 0, 0, 0, 0], op.Constant(value_float=0.0))
    rows = op.Softmax(op.Add(scores, mask), axis=-1)
    return op.MatMul(op.CastLike(rows, value), value)


def _kept_keys(coefficients: Any, basis: Any, top: int, keys: int, tile: int, prefix: int) -> Any:
    op, float32 = _operators()
    patches, directions = coefficients.shape[2:]
    tokens = basis.shape[-1]
    if len(basis.shape) == 3:
        basis = op.Unsqueeze(basis, [1])
    rows = op.Cast(coefficients, to=float32)
    if top < directions:
        largest, _ = op.TopK(rows, [top], axis=-1)
        least = op.Slice(largest, [top - 1], [top], [3])
        rows = op.Where(op.GreaterOrEqual(rows, least), rows, op.Constant(value_float=0.0))
    if tile > 1:
        tiles = tile_count(patches, tile)
        padded = op.Pad(rows, [0, 0, 0, 0, 0, 0, tiles * tile - patches, 0], op.Constant(value_float=0.0))
        rows = op.ReduceSum(op.Reshape(padded, [0, 0, tiles, tile, directions]), [3], keepdims=0)
    scores = op.MatMul(rows, op.Cast(basis, to=float32))
    always = op.Constant(value_floats=[_FIRST] * prefix + [0.0] * (tokens - prefix))
    # Between equal values TopK takes the lower index.
    _, order = op.TopK(op.Add(scores, always), [keys], axis=-1)
    return order


@cache
def _node_writer() -> Any:
    """What writes the node; the exporter needs an operator schema to know the type of its output."""
    from onnx.defs import OpSchema
    from onnxscript import values

    kinds = OpSchema.AttrType
    attributes = {"tile": kinds.INT, "prefix": kinds.INT, "scale": kinds.FLOAT}
    attributes |= dict.fromkeys(PLUGIN_ATTRIBUTES, kinds.STRING)
    operands = [OpSchema.FormalParameter(name, "T") for name in ("query", "key", "value")]
    schema = OpSchema(
        ATTENTION,
        DOMAIN,
        VERSION,
        inputs=[*operands, OpSchema.FormalParameter("kept", "tensor(int32)")],
        outputs=[OpSchema.FormalParameter("mixed", "T")],
        type_constraints=[("T", list(FLOAT_TYPES), "")],
        attributes=[OpSchema.Attribute(name, kind) for name, kind in attributes.items()],
    )
    return values.Op(values.Opset(DOMAIN, VERSION), ATTENTION, schema)


def _operators() -> tuple[Any, int]:
    """The operators to write with, and ONNX's number for float32."""
    from onnxscript import FLOAT, opset18

    return opset18, FLOAT.dtype
