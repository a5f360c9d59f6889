"""Sparse attention as an ONNX local function: what the node ``vitslim::SparseAttention`` means, in standard operators.

A runtime with a plugin of that name takes the plugin; every other one inlines the function. The numbers are those of
``vitslim.kernels.sparse_attention`` without a bias.
"""

from typing import Any

DOMAIN = "vitslim"
VERSION = 1
ATTENTION = "SparseAttention"

PLUGIN_ATTRIBUTES = {"plugin_namespace": "vitslim", "plugin_version": "1"}
"""On every node: how TensorRT's parser finds the plugin, and that it prefers it to the function."""

FLOAT_TYPES = ("tensor(float)", "tensor(float16)", "tensor(bfloat16)")

HIDDEN = -30000.0
"""Added to a score that should not count. TensorRT's fp16 softmax turns -inf into NaN; exp(-30000) is 0 as well."""


def sparse_attention_function(opset: int) -> Any:
    """The ``onnx.FunctionProto`` (query, key, value: (b, h, n, e) of one float type; kept: (b, h, t, k)) -> mixed.

    Its attributes are those of the node: ``tile``, ``prefix``, ``scale`` and the two of the plugin. Scores and softmax
    are float32 whatever the operands are. No size is written down, so one body serves all nodes and any batch.

    Args:
        opset: of the file it will stand in; 18 or more.
    """
    import onnx

    function = onnx.parser.parse_function(_BODY.format(opset=opset, hidden=HIDDEN))
    function.attribute.extend(PLUGIN_ATTRIBUTES)
    return function


# Rows of `sets` are key sets: 0 at the kept keys, hidden elsewhere. The query at patch p takes row p // tile; the
# prefix queries, which read every key, get rows of zeros.
_BODY = """
<domain: "vitslim", opset_import: ["" : {opset}]>
SparseAttention <tile, prefix, scale> (query, key, value, kept) => (mixed)
{{
    factor = Constant <value_float: float = @scale> ()
    factor_like_query = CastLike (factor, query)
    scaled = Mul (query, factor_like_query)
    turned = Transpose <perm = [0, 1, 3, 2]> (key)
    products = MatMul (scaled, turned)
    scores = Cast <to = 1> (products)
    indices = Cast <to = 7> (kept)
    tokens = Shape <start = 2, end = 3> (key)
    leading = Shape <start = 0, end = 3> (kept)
    sets_shape = Concat <axis = 0> (leading, tokens)
    hidden = Constant <value_float = {hidden}> ()
    all_hidden = Expand (hidden, sets_shape)
    kept_shape = Shape (kept)
    seen = Constant <value_float = 0.0> ()
    seen_keys = Expand (seen, kept_shape)
    sets = ScatterElements <axis = 3> (all_hidden, indices, seen_keys)
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    prefix_queries = Constant <value_int: int = @prefix> ()
    queries = Shape <start = 2, end = 3> (query)
    query_count = Squeeze (queries)
    patches = Sub (query_count, prefix_queries)
    patch = Range (zero, patches, one)
    tile_width = Constant <value_int: int = @tile> ()
    row = Div (patch, tile_width)
    patch_mask = Gather <axis = 2> (sets, row)
    first_axis = Constant <value_ints = [0]> ()
    front = Unsqueeze (prefix_queries, first_axis)
    none_before = Constant <value_ints = [0, 0]> ()
    none_after = Constant <value_ints = [0, 0, 0, 0, 0]> ()
    pads = Concat <axis = 0> (none_before, front, none_after)
    mask = Pad (patch_mask, pads, seen)
    masked = Add (scores, mask)
    rows = Softmax <axis = -1> (masked)
    rows_like_value = CastLike (rows, value)
    mixed = MatMul (rows_like_value, value)
}}
"""
