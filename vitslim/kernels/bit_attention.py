"""Sparse attention for the kernels of ``vitslim.kernels.triton``: kept keys as bits, or as indices that tiles share.

Torch custom ops, each with a readable form in torch's own operators for the CPU and kernels for NVIDIA GPUs:

    vitslim::kept_bits               the choice of ``vitslim::kept_keys``, one bit for each key of each tile
    vitslim::bit_attention           softmax attention over the keys whose bit is set
    vitslim::bit_attention_backward  its gradient, and that of
    vitslim::tile_attention          softmax attention over the indices that the queries of a tile share

The attention ops also return the log-sum-exp of each row, from which the gradient is recomputed. They are chosen where
``kernels_serve``, never in files, which hold ``vitslim::sparse_attention``. Bits take n² / 8 bytes for each head, the
indices of as many single queries 2 n² at a quarter of the keys.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.kernels.key_bits import BITS, bits_of_keys, unpacked_bits
from vitslim.kernels.serving import kernels_serve, serves_attention
from vitslim.kernels.sparse_attention import attention_gradients, each_query, tile_count, topk_keys


def kept_bits(
    coefficients: Float[Tensor, "b h p m"],
    basis: Float[Tensor, "*b m n"],
    *,
    top: int,
    keys: int,
    tile: int,
    prefix: int,
) -> Int[Tensor, "b h t w"]:
    """``kept_keys`` as bits: key j of a tile is kept where bit j % 32 of word j // 32 is set; no bit is set behind n.

    The scores of a kernel are summed in another order than torch's, so keys whose scores differ by a few units of
    float32's rounding may change places; equal scores go to the lower index.
    """
    return torch.ops.vitslim.kept_bits(coefficients.detach(), basis.detach(), top, keys, tile, prefix)


def bit_attention(
    query: Float[Tensor, "b h n e"],
    key: Float[Tensor, "b h n e"],
    value: Float[Tensor, "b h n f"],
    bits: Int[Tensor, "b h t w"],
    *,
    tile: int,
    prefix: int,
    scale: float,
) -> Float[Tensor, "b h n f"]:
    """Softmax attention of each patch query over the keys of its tile whose bit is set, of each prefix query over all.

    A query without any key gets zeros. Arguments as in ``sparse_attention``, which has no kernel for a bias.

    Raises:
        ConfigError: ``bits`` has not one row of ⌈n / 32⌉ words for each tile of each head.
    """
    images, heads, tokens, _ = query.shape
    wanted = (images, heads, tile_count(tokens - prefix, tile), tile_count(tokens, BITS))
    if bits.shape != wanted:
        raise ConfigError(f"bits of shape {tuple(bits.shape)} for tiles of {tile} queries; wanted {wanted}")
    query, key = query.to(value.dtype), key.to(value.dtype)
    return torch.ops.vitslim.bit_attention(query, key, value, bits, tile, prefix, scale)[0]


def _topk_bits(coefficients: Tensor, basis: Tensor, top: int, keys: int, tile: int, prefix: int) -> Tensor:
    return bits_of_keys(topk_keys(coefficients, basis, top, keys, tile, prefix), basis.shape[-1])


_kept_bits = torch.library.custom_op("vitslim::kept_bits", _topk_bits, mutates_args=())


@_kept_bits.register_fake
def _kept_bits_shape(coefficients: Tensor, basis: Tensor, top: int, keys: int, tile: int, prefix: int) -> Tensor:
    images, heads, patches, _ = coefficients.shape
    tiles, words = -(-patches // tile), -(-basis.shape[-1] // BITS)
    return coefficients.new_empty(images, heads, tiles, words, dtype=torch.int32)


@_kept_bits.register_kernel("cuda")
def _kept_bits_on_gpu(coefficients: Tensor, basis: Tensor, top: int, keys: int, tile: int, prefix: int) -> Tensor:
    if not kernels_serve(coefficients) or not kernels_serve(basis):
        return _topk_bits(coefficients, basis, top, keys, tile, prefix)
    from vitslim.kernels.triton import key_choice

    return key_choice.kept_bits(coefficients, basis, top, keys, tile, prefix)


def _masked_attention(
    query: Tensor, key: Tensor, value: Tensor, bits: Tensor, tile: int, prefix: int, scale: float
) -> tuple[Tensor, Tensor]:
    scores = _seen_scores(query, key, bits, tile, prefix, scale)
    # Rows that see nothing are 0/0 in the softmax.
    mixed = scores.softmax(dim=-1).nan_to_num().to(value.dtype) @ value
    return _as_kernels_lay(mixed), scores.logsumexp(dim=-1)


def _seen_scores(query: Tensor, key: Tensor, bits: Tensor, tile: int, prefix: int, scale: float) -> Tensor:
    tokens = key.shape[2]
    seen = each_query(unpacked_bits(bits, tokens), tokens, tile, prefix)
    return ((query * scale) @ key.transpose(-2, -1)).float().masked_fill(~seen, float("-inf"))


def _as_kernels_lay(tensor: Tensor) -> Tensor:
    # Tokens before heads in memory, as in the dense fused kernels: merging the heads is then free.
    return tensor.transpose(1, 2).contiguous().transpose(1, 2)


_bit_attention = torch.library.custom_op("vitslim::bit_attention", _masked_attention, mutates_args=())


@_bit_attention.register_fake
def _attention_shape(
    query: Tensor, key: Tensor, value: Tensor, bits: Tensor, tile: int, prefix: int, scale: float
) -> tuple[Tensor, Tensor]:
    images, heads, tokens, _ = query.shape
    mixed = value.new_empty(images, tokens, heads, value.shape[3]).transpose(1, 2)
    return mixed, query.new_empty(images, heads, tokens, dtype=torch.float32)


@_bit_attention.register_kernel("cuda")
def _bit_attention_on_gpu(
    query: Tensor, key: Tensor, value: Tensor, bits: Tensor, tile: int, prefix: int, scale: float
) -> tuple[Tensor, Tensor]:
    if not serves_attention(query, value):
        return _masked_attention(query, key, value, bits, tile, prefix, scale)
    from vitslim.kernels.triton import bit_attention

    return bit_attention.attend(query, key, value, bits, tile, prefix, scale)


def _masked_gradients(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bits: Tensor,
    out: Tensor,
    lse: Tensor,
    tile: int,
    prefix: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    rows = _seen_scores(query, key, bits, tile, prefix, scale).softmax(dim=-1).nan_to_num()
    grad_query, grad_key, grad_value, _ = attention_gradients(grad, query, key, value, rows, scale)
    return _as_kernels_lay(grad_query), _as_kernels_lay(grad_key), _as_kernels_lay(grad_value)


_backward = torch.library.custom_op("vitslim::bit_attention_backward", _masked_gradients, mutates_args=())


@_backward.register_fake
def _gradient_shapes(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bits: Tensor,
    out: Tensor,
    lse: Tensor,
    tile: int,
    prefix: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    images, heads, tokens, width = query.shape
    empty = [
        part.new_empty(images, tokens, heads, features).transpose(1, 2)
        for part, features in ((query, width), (key, width), (value, value.shape[3]))
    ]
    return empty[0], empty[1], empty[2]


@_backward.register_kernel("cuda")
def _gradients_on_gpu(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bits: Tensor,
    out: Tensor,
    lse: Tensor,
    tile: int,
    prefix: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if not serves_attention(query, value):
        return _masked_gradients(grad, query, key, value, bits, out, lse, tile, prefix, scale)
    from vitslim.kernels.triton import bit_attention_backward

    return bit_attention_backward.gradients(grad, query, key, value, bits, out, lse, tile, prefix, scale)


def _shared_attention(
    query: Tensor, key: Tensor, value: Tensor, kept: Tensor, tile: int, prefix: int, scale: float
) -> tuple[Tensor, Tensor]:
    return _masked_attention(query, key, value, bits_of_keys(kept, key.shape[2]), tile, prefix, scale)


_tile_attention = torch.library.custom_op("vitslim::tile_attention", _shared_attention, mutates_args=())


@_tile_attention.register_fake
def _tile_attention_shape(
    query: Tensor, key: Tensor, value: Tensor, kept: Tensor, tile: int, prefix: int, scale: float
) -> tuple[Tensor, Tensor]:
    return _attention_shape(query, key, value, kept, tile, prefix, scale)


@_tile_attention.register_kernel("cuda")
def _tile_attention_on_gpu(
    query: Tensor, key: Tensor, value: Tensor, kept: Tensor, tile: int, prefix: int, scale: float
) -> tuple[Tensor, Tensor]:
    if not serves_attention(query, value):
        return _shared_attention(query, key, value, kept, tile, prefix, scale)
    from vitslim.kernels.triton import tile_attention

    return tile_attention.attend(query, key, value, kept, tile, prefix, scale)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, seen, ctx.tile, ctx.prefix, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, key, value, seen, *output)


def _gradient_by_bits(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return _gradient(ctx, grad, ctx.saved_tensors[3])


def _gradient_by_keys(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    _, key, _, kept, _, _ = ctx.saved_tensors
    return _gradient(ctx, grad, bits_of_keys(kept, key.shape[2]))


def _gradient(ctx: Any, grad: Tensor, bits: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, _, out, lse = ctx.saved_tensors
    grads = torch.ops.vitslim.bit_attention_backward(
        grad, query, key, value, bits, out, lse, ctx.tile, ctx.prefix, ctx.scale
    )
    return (*grads, None, None, None, None)


_bit_attention.register_autograd(_gradient_by_bits, setup_context=_remember)
_tile_attention.register_autograd(_gradient_by_keys, setup_context=_remember)
