"""A linear map whose matrix is a shared one and a low-rank residual of its own.

The plain form is three matrix products, which files, CPUs and many rows get; the torch custom op has one Triton kernel
for NVIDIA GPUs (``vitslim.kernels.triton.low_rank_linear``), whose gradient is plain products again. The op on a CPU is
the plain form.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitslim.kernels.serving import kernels_serve

LARGEST_RANK = 128
"""The Triton kernel holds a tile of x Aᵀ in registers; DeiT-S has 32 by default, ViT-L 85."""

MOST_PRODUCTS = 2**30
"""Entries of x times rows of W' up to which the Triton kernel is called; above, three products of cuBLAS.

The kernel computes x Aᵀ again for each tile of columns, half as much as x W'ᵀ itself where tiles are twice as wide as
the rank. At this bound x W'ᵀ takes 3.6 µs of an H100 (600 TFLOP/s), so that the half costs 1.8 µs: less than the two
launches saved and the second reading and writing of the result, but not for much longer. One image of 197 tokens in
ViT-L's widest map is 0.83 · 10⁹, eight in DeiT-S's 0.93 · 10⁹. Reckoned, not measured.
"""


def low_rank_linear(
    tokens: Float[Tensor, "*b i"],
    weight: Float[Tensor, "o i"],
    up: Float[Tensor, "o r"],
    down: Float[Tensor, "r i"],
    bias: Float[Tensor, " o"] | None,
    *,
    walked_again: bool = False,
) -> Float[Tensor, "*b o"]:
    """The map x (W' + B A)ᵀ + b, without the sum W' + B A; under autocast in its precision, as ``F.linear``.

    Args:
        weight: W'.
        up: B.
        down: A.
        walked_again: whether another map reads the same W' right after this one's block, so that it shall stay in the
            cache.
    """
    if _fits_kernel(tokens, weight, up):
        device = tokens.device.type
        if torch.is_autocast_enabled(device):
            # Torch has an autocast rule for its own operators alone.
            dtype = torch.get_autocast_dtype(device)
            tokens, weight, up, down = (part.to(dtype) for part in (tokens, weight, up, down))
            bias = None if bias is None else bias.to(dtype)
        if _are_alike(tokens, weight, up, down, bias):
            return torch.ops.vitslim.low_rank_linear(tokens, weight, up, down, bias, walked_again)
    return plain_low_rank_linear(tokens, weight, up, down, bias)


def plain_low_rank_linear(tokens: Tensor, weight: Tensor, up: Tensor, down: Tensor, bias: Tensor | None) -> Tensor:
    """``vitslim::low_rank_linear`` in torch's own operators."""
    # x W'ᵀ + b + (x Aᵀ) Bᵀ
    return F.linear(tokens, weight, bias) + F.linear(F.linear(tokens, down), up)


def _fits_kernel(tokens: Tensor, weight: Tensor, up: Tensor) -> bool:
    # Sizes are asked for last: in a file that takes any batch nothing may be compared with it.
    if not kernels_serve(tokens):
        return False
    return tokens.numel() * weight.shape[0] <= MOST_PRODUCTS and 0 < up.shape[1] <= LARGEST_RANK


def _are_alike(tokens: Tensor, *others: Tensor | None) -> bool:
    return all(part is None or (part.dtype, part.device) == (tokens.dtype, tokens.device) for part in others)


def _plain(tokens: Tensor, weight: Tensor, up: Tensor, down: Tensor, bias: Tensor | None, walked_again: bool) -> Tensor:
    with torch.autocast(tokens.device.type, enabled=False):
        return plain_low_rank_linear(tokens, weight, up, down, bias).contiguous()


_low_rank_linear = torch.library.custom_op("vitslim::low_rank_linear", _plain, mutates_args=())


@_low_rank_linear.register_kernel("cuda")
def _low_rank_linear_on_gpu(
    tokens: Tensor, weight: Tensor, up: Tensor, down: Tensor, bias: Tensor | None, walked_again: bool
) -> Tensor:
    if not _fits_kernel(tokens, weight, up) or not _are_alike(tokens, weight, up, down, bias):
        return _plain(tokens, weight, up, down, bias, walked_again)
    from vitslim.kernels.triton import low_rank_linear

    return low_rank_linear.mapped(tokens, weight, up, down, bias, walked_again)


@_low_rank_linear.register_fake
def _mapped_shape(
    tokens: Tensor, weight: Tensor, up: Tensor, down: Tensor, bias: Tensor | None, walked_again: bool
) -> Tensor:
    return tokens.new_empty(*tokens.shape[:-1], weight.shape[0])


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    tokens, weight, up, down = ctx.saved_tensors
    of_tokens, of_weight, of_up, of_down, of_bias, _ = ctx.needs_input_grad
    slopes, rows = grad.reshape(-1, grad.shape[-1]), tokens.reshape(-1, tokens.shape[-1])
    # y = x W'ᵀ + (x Aᵀ) Bᵀ + b:  dx = g W' + (g B) A;  dW' = gᵀ x;  dB = gᵀ (x Aᵀ);  dA = (g B)ᵀ x;  db = Σ g
    through = slopes @ up
    return (
        (slopes @ weight + through @ down).view(tokens.shape) if of_tokens else None,
        slopes.t() @ rows if of_weight else None,
        slopes.t() @ (rows @ down.t()) if of_up else None,
        through.t() @ rows if of_down else None,
        slopes.sum(dim=0) if of_bias else None,
        None,
    )


_low_rank_linear.register_autograd(_gradient, setup_context=_remember)
