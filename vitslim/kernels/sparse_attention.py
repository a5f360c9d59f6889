"""Attention in which a query reads only the keys kept for it.

The prefix tokens (class, registers) come first: their queries read every key. The patch queries are cut into *tiles* of
consecutive tokens; the queries of a tile share one key set per head. A tile of one query is unstructured sparsity, a
tile of all patch queries is key and value compaction.

``vitslim::sparse_attention`` and ``vitslim::kept_keys`` are torch custom ops: opaque to the compiler and the exporter,
so that a fast form can take their place. What stands here is the readable reference: it gives the same numbers, but
computes all scores and masks most of them, hence it saves nothing. Their costs are those of their definition. On NVIDIA
GPUs the forward of tiles without a bias can be a Triton kernel (``vitslim.kernels.triton.tile_attention``).

A kernel for a key set per query cannot win: at a quarter of the keys no block of 64 x 64 scores is empty, so that it
computes what dense attention does and reads a mask besides (0.5 to 0.6 of its speed, estimated). Nor can one that
chooses keys: coefficients times basis in float32 alone take more than dense attention in half precision saves.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.kernels.dispatch import use_triton

FEWEST_QUERIES = 16
"""Of a tile that has a kernel: fewer than tensor cores take at once are not worth a gather of their own."""
WIDEST_HEAD = 128
"""Wider ones would spill."""
WIDTH_MULTIPLE = 8
"""Of heads that are read in whole vectors of 16 bytes, as the kernels compiled ahead of time do."""


def sparse_attention(
    query: Float[Tensor, "b h n e"],
    key: Float[Tensor, "b h n e"],
    value: Float[Tensor, "b h n f"],
    kept: Int[Tensor, "b h t k"],
    *,
    tile: int,
    prefix: int,
    scale: float,
    bias: Tensor | None = None,
) -> Float[Tensor, "b h n f"]:
    """Softmax attention of each patch query over the kept keys of its tile, of each prefix query over all keys.

    Where one tile holds all patch queries, kept keys and values are gathered and attended to with ordinary fused
    attention: no custom op, and really less work. The other forms go through ``vitslim::sparse_attention``.

    Args:
        kept: token indices of the keys of each tile; nothing twice within a tile.
        tile: patch queries per tile; the last tile may be shorter.
        prefix: number of tokens at the front that are no patches.
        scale: factor of the scores.
        bias: added to the scores, broadcastable to (b, h, n, n); ``-inf`` hides a key. A query that sees no kept key
            gets zeros.

    Raises:
        ConfigError: ``kept`` has not one key set for each tile.
    """
    tiles = tile_count(query.shape[2] - prefix, tile)
    if kept.shape[2] != tiles:
        raise ConfigError(f"{kept.shape[2]} key sets for {tiles} tiles of {tile} queries; wanted one each")
    # Under autocast q and k may come out of a norm in another precision than v.
    query, key = query.to(value.dtype), key.to(value.dtype)
    bias = None if bias is None else bias.to(value.dtype)
    if tiles == 1:
        return compacted_attention(query, key, value, kept, prefix=prefix, scale=scale, bias=bias)
    return torch.ops.vitslim.sparse_attention(query, key, value, kept, bias, tile, prefix, scale)


def compacted_attention(
    query: Float[Tensor, "b h n e"],
    key: Float[Tensor, "b h n e"],
    value: Float[Tensor, "b h n f"],
    kept: Int[Tensor, "b h 1 k"],
    *,
    prefix: int,
    scale: float,
    bias: Tensor | None = None,
) -> Float[Tensor, "b h n f"]:
    """``sparse_attention`` with one key set for all patch queries: gather k keys and values, then fused attention."""
    columns = kept[:, :, 0, :, None]
    few_keys, few_values = (part.gather(2, columns.expand(-1, -1, -1, part.shape[-1])) for part in (key, value))
    patches = F.scaled_dot_product_attention(
        query[:, :, prefix:], few_keys, few_values, attn_mask=_bias_of_kept(bias, kept, query, prefix), scale=scale
    )
    if prefix == 0:
        return patches
    # A handful of rows: plain products, next to which another fused call would not pay.
    scores = (query[:, :, :prefix] * scale) @ key.transpose(-2, -1)
    scores = scores if bias is None else scores + _rows(bias, slice(0, prefix))
    rows = scores.float().softmax(dim=-1).to(value.dtype)
    return torch.cat([rows @ value, patches], dim=2)


def kept_keys(
    coefficients: Float[Tensor, "b h p m"],
    basis: Float[Tensor, "*b m n"],
    *,
    top: int,
    keys: int,
    tile: int,
    prefix: int,
) -> Int[Tensor, "b h t k"]:
    """The keys of each tile: those with the largest sum, over the tile's rows, of coefficients times basis.

    Of a row's coefficients the ``top`` largest count. Equal scores go to the lower index, as in ONNX, so that every
    runtime chooses alike. Nothing here has a gradient.

    Args:
        coefficients: m non-negative weights for each patch query.
        basis: m non-negative attention rows over all n tokens, for all images or for each.
        keys: number of keys to keep, more than ``prefix`` and at most n.
        tile: patch queries that share a key set.
        prefix: number of tokens at the front that are always kept, within ``keys``; 0 where all compete.
    """
    return torch.ops.vitslim.kept_keys(coefficients.detach(), basis.detach(), top, keys, tile, prefix)


def topk(coefficients: Float[Tensor, "*r m"], top: int) -> Float[Tensor, "*r m"]:
    """The ``top`` largest of each row, the others zero; all that equal the smallest of them stay."""
    if top >= coefficients.shape[-1]:
        return coefficients
    least = coefficients.topk(top, dim=-1).values[..., -1:]
    return torch.where(coefficients >= least, coefficients, 0.0)


def tile_count(patches: int, tile: int) -> int:
    """How many tiles hold all patch queries."""
    return -(-patches // tile)


def kept_mask(kept: Int[Tensor, "b h t k"], tokens: int, tile: int, prefix: int) -> Bool[Tensor, "b h n n"]:
    """Which key (column) each query (row) reads."""
    none = torch.zeros(*kept.shape[:3], tokens, dtype=torch.bool, device=kept.device)
    patches = none.scatter(-1, kept, True).repeat_interleave(tile, dim=2)[:, :, : tokens - prefix]
    return F.pad(patches, (0, 0, prefix, 0), value=True)


def masked_attention(
    query: Tensor, key: Tensor, value: Tensor, kept: Tensor, bias: Tensor | None, tile: int, prefix: int, scale: float
) -> Tensor:
    """``vitslim::sparse_attention`` in torch's own operators: all scores, most of them masked."""
    seen = kept_mask(kept, key.shape[2], tile, prefix)
    mask = seen if bias is None else torch.where(seen, bias, float("-inf"))
    # softmax(Q Kᵀ · scale + bias over the kept keys) V
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    # Tokens before heads in memory, as in the dense fused kernels: merging the heads is then free.
    return mixed.transpose(1, 2).contiguous().transpose(1, 2)


_sparse_attention = torch.library.custom_op("vitslim::sparse_attention", masked_attention, mutates_args=())


@_sparse_attention.register_kernel("cuda")
def _sparse_attention_on_gpu(
    query: Tensor, key: Tensor, value: Tensor, kept: Tensor, bias: Tensor | None, tile: int, prefix: int, scale: float
) -> Tensor:
    fits = tile >= FEWEST_QUERIES and max(query.shape[-1], value.shape[-1]) <= WIDEST_HEAD
    if bias is not None or not fits or not use_triton(value, "tile_attention", value.shape[2]):
        return masked_attention(query, key, value, kept, bias, tile, prefix, scale)
    from vitslim.kernels.triton import tile_attention

    return tile_attention.attend(query, key, value, kept, tile, prefix, scale)


@_sparse_attention.register_fake
def _sparse_attention_shape(
    query: Tensor, key: Tensor, value: Tensor, kept: Tensor, bias: Tensor | None, tile: int, prefix: int, scale: float
) -> Tensor:
    images, heads, tokens, _ = query.shape
    return value.new_empty(images, tokens, heads, value.shape[-1]).transpose(1, 2)


def _remember_operands(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.tile, ctx.prefix, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _sparse_attention_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, kept, bias = ctx.saved_tensors
    scores = ((query * ctx.scale) @ key.transpose(-2, -1)).float()
    scores = scores if bias is None else scores + bias
    scores = scores.masked_fill(~kept_mask(kept, key.shape[2], ctx.tile, ctx.prefix), float("-inf"))
    # Rows that see nothing are 0/0 in the softmax and zeros in the forward.
    rows = scores.softmax(dim=-1).nan_to_num()
    # dV = Aᵀ dO;  dA = dO Vᵀ;  dS = A ∘ (dA - (A ∘ dA) 1)
    grad_value = rows.to(grad.dtype).transpose(-2, -1) @ grad
    grad_rows = (grad @ value.transpose(-2, -1)).float()
    grad_scores = rows * (grad_rows - (rows * grad_rows).sum(dim=-1, keepdim=True))
    grad_products = (grad_scores * ctx.scale).to(query.dtype)
    grad_bias = None
    if bias is not None and ctx.needs_input_grad[4]:
        grad_bias = grad_scores.sum_to_size(bias.shape).to(bias.dtype)
    grad_query, grad_key = grad_products @ key, grad_products.transpose(-2, -1) @ query
    return grad_query, grad_key, grad_value, None, grad_bias, None, None, None


_sparse_attention.register_autograd(_sparse_attention_gradient, setup_context=_remember_operands)


def key_scores(coefficients: Tensor, basis: Tensor, top: int, tile: int, prefix: int) -> Float[Tensor, "b h t n"]:
    """By which ``kept_keys`` keeps keys, float32; infinite for those that are always kept."""
    return scores_of_rows(topk(coefficients.float(), top), basis, tile, prefix)


def scores_of_rows(rows: Tensor, basis: Tensor, tile: int, prefix: int) -> Float[Tensor, "b h t n"]:
    """The same of coefficients of which those that do not count are zero."""
    patches, tokens = rows.shape[2], basis.shape[-1]
    tiles = tile_count(patches, tile)
    summed = F.pad(rows, (0, 0, 0, tiles * tile - patches)).unflatten(2, (tiles, tile)).sum(dim=3)
    with torch.autocast(rows.device.type, enabled=False):  # half precision would make many scores equal
        scores = summed @ (basis.float() if basis.ndim == 2 else basis.float().unsqueeze(1))
    return scores.masked_fill(torch.arange(tokens, device=scores.device) < prefix, float("inf"))


def topk_keys(coefficients: Tensor, basis: Tensor, top: int, keys: int, tile: int, prefix: int) -> Tensor:
    """``vitslim::kept_keys`` in torch's own operators."""
    scores = key_scores(coefficients, basis, top, tile, prefix)
    tokens = scores.shape[-1]
    index = torch.arange(tokens, device=scores.device)
    # Bits of non-negative floats sort like the floats. With the index behind them no two are equal, so topk, twice as
    # fast as a stable sort, has no ties to break.
    ranks = (scores.view(torch.int32).long() << 32) | (tokens - 1 - index)
    return ranks.topk(keys, dim=-1).indices


_kept_keys = torch.library.custom_op("vitslim::kept_keys", topk_keys, mutates_args=())


@_kept_keys.register_fake
def _kept_keys_shape(coefficients: Tensor, basis: Tensor, top: int, keys: int, tile: int, prefix: int) -> Tensor:
    images, heads, patches, _ = coefficients.shape
    return coefficients.new_empty(images, heads, tile_count(patches, tile), keys, dtype=torch.int64)


def _rows(bias: Tensor, rows: slice) -> Tensor:
    # A mask over keys alone has a single row, which serves all queries.
    return bias if bias.shape[-2] == 1 else bias[..., rows, :]


def _bias_of_kept(bias: Tensor | None, kept: Tensor, query: Tensor, prefix: int) -> Tensor | None:
    if bias is None:
        return None
    images, heads, _, keys = kept.shape
    patches = query.shape[2] - prefix
    rows = _rows(bias, slice(prefix, None)).expand(images, heads, patches, -1)
    return rows.gather(-1, kept.expand(-1, -1, patches, keys))
