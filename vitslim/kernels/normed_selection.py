"""Taking tokens apart with a LayerNorm on the way, for the attention that reads the first part next.

A plain form in torch's operators, and a torch custom op with a Triton kernel for NVIDIA GPUs
(``vitslim.kernels.triton.normed_selection``, which has the arithmetic). The op on a CPU is the plain form.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitslim.kernels.token_selection import (
    copied_back,
    gather_split,
    left_to_inductor,
    moves_by_kernel,
    plain_gather_split,
    rest,
    wide,
)

WIDEST = 4096
"""A row is whole in a program's registers; above this torch norms."""


def gather_split_normed(
    first: Float[Tensor, "b f d"],
    second: Float[Tensor, "b s d"] | None,
    indices: Int[Tensor, "b n"],
    ahead: int,
    weight: Float[Tensor, " d"],
    bias: Float[Tensor, " d"],
    eps: float,
) -> tuple[Float[Tensor, "b a d"], Float[Tensor, "b w d"], Float[Tensor, "b a d"] | None]:
    """``gather_split``, and the first part behind a LayerNorm, in the type that ``nn.LayerNorm`` would give it.

    The norm is ``None`` where it is better made behind: where no kernel serves, or the compiler joins it to the gather.

    Args:
        second: what stands behind ``first``, if anything does.
        indices: for each of all n = f + s tokens of the new order, where it stood.
        ahead: a, how many of them come into the first part.
        weight: γ.
        bias: β.
        eps: added to the variance.
    """
    # The kernels norm rows of zeros too, where a block of rows is not full: without ε by a division by zero.
    serves = eps > 0.0 and _norms_by_kernel(first, second, weight, bias)
    if not serves or left_to_inductor(second):
        return *gather_split(first, second, indices, ahead), None
    return torch.ops.vitslim.gather_split_normed(first, rest(first, second), indices, ahead, weight, bias, eps)


def plain_gather_split_normed(
    first: Tensor, second: Tensor | None, indices: Tensor, ahead: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``vitslim::gather_split_normed`` in torch's own operators."""
    active, inactive = plain_gather_split(first, second, indices, ahead)
    normed = F.layer_norm(wide(active), active.shape[2:], wide(weight), wide(bias), eps)
    return active, inactive, normed.to(weight.dtype)


def plain_gradients(
    active_grad: Tensor,
    inactive_grad: Tensor,
    normed_grad: Tensor,
    active: Tensor,
    indices: Tensor,
    weight: Tensor,
    eps: float,
    cut: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``vitslim::gather_split_normed_backward``: of (first, second), cut at row ``cut``, of γ and of β."""
    variance, mean = torch.var_mean(wide(active), dim=2, correction=0, keepdim=True)
    inverse_deviation = (variance + eps).rsqrt()
    values, gained = (wide(active) - mean) * inverse_deviation, wide(normed_grad)
    # g = γ dy;  dx = (g - mean g - x̂ mean(g x̂)) / σ;  dγ = Σ dy x̂;  dβ = Σ dy
    slope = wide(weight) * gained
    slope = slope - slope.mean(dim=2, keepdim=True) - values * (slope * values).mean(dim=2, keepdim=True)
    back = (active_grad + slope * inverse_deviation).to(active.dtype)
    sums = ((gained * values).sum(dim=(0, 1)), gained.sum(dim=(0, 1)))
    return *copied_back(back, inactive_grad, indices, cut), sums[0].to(weight.dtype), sums[1].to(weight.dtype)


def _norms_by_kernel(first: Tensor, second: Tensor | None, weight: Tensor, bias: Tensor) -> bool:
    # Autocast has LayerNorm in float32 on a GPU.
    in_float = first.is_cuda and torch.is_autocast_enabled("cuda")
    given = torch.float32 if in_float else first.dtype
    return moves_by_kernel(first, second) and weight.dtype == bias.dtype == given and first.shape[2] <= WIDEST


def _copied_normed(
    first: Tensor, second: Tensor, indices: Tensor, ahead: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    active, inactive, normed = plain_gather_split_normed(first, second, indices, ahead, weight, bias, eps)
    return active.clone(), inactive.clone(), normed


_gather_split_normed = torch.library.custom_op("vitslim::gather_split_normed", _copied_normed, mutates_args=())


@_gather_split_normed.register_kernel("cuda")
def _gather_split_normed_cuda(
    first: Tensor, second: Tensor, indices: Tensor, ahead: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    if not (moves_by_kernel(first, second) and first.shape[2] <= WIDEST):
        return _copied_normed(first, second, indices, ahead, weight, bias, eps)
    from vitslim.kernels.triton import normed_selection

    return normed_selection.gather_split_normed(first, second, indices, ahead, weight, bias, eps)


@_gather_split_normed.register_fake
def _normed_shapes(
    first: Tensor, second: Tensor, indices: Tensor, ahead: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    images, count = indices.shape
    width = first.shape[2]
    active, inactive = first.new_empty(images, ahead, width), first.new_empty(images, count - ahead, width)
    return active, inactive, weight.new_empty(images, ahead, width)


_backward = torch.library.custom_op("vitslim::gather_split_normed_backward", plain_gradients, mutates_args=())


@_backward.register_kernel("cuda")
def _gradients_cuda(
    active_grad: Tensor,
    inactive_grad: Tensor,
    normed_grad: Tensor,
    active: Tensor,
    indices: Tensor,
    weight: Tensor,
    eps: float,
    cut: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not (moves_by_kernel(active, inactive_grad) and active.shape[2] <= WIDEST):
        return plain_gradients(active_grad, inactive_grad, normed_grad, active, indices, weight, eps, cut)
    from vitslim.kernels.triton import normed_selection

    return normed_selection.gradients(active_grad, inactive_grad, normed_grad, active, indices, weight, eps, cut)


@_backward.register_fake
def _gradient_shapes(
    active_grad: Tensor,
    inactive_grad: Tensor,
    normed_grad: Tensor,
    active: Tensor,
    indices: Tensor,
    weight: Tensor,
    eps: float,
    cut: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, count = indices.shape
    width = active.shape[2]
    parts = active.new_empty(images, cut, width), active.new_empty(images, count - cut, width)
    return *parts, weight.new_empty(width), weight.new_empty(width)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    first, _, indices, _, weight, _, ctx.eps = inputs
    ctx.cut = first.shape[1]
    ctx.save_for_backward(output[0], indices, weight)


def _gradients(ctx: Any, active: Tensor, inactive: Tensor, normed: Tensor) -> tuple[Tensor | None, ...]:
    grads = (active, inactive, normed, *ctx.saved_tensors, ctx.eps, ctx.cut)
    first, second, weight, bias = torch.ops.vitslim.gather_split_normed_backward(*grads)
    return first, second, None, None, weight, bias, None


_gather_split_normed.register_autograd(_gradients, setup_context=_remember)
