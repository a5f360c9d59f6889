"""Choosing tokens: by which score, in which order, and where their rows go.

Each function has a plain form in torch's operators, which files and CPUs get, and a torch custom op with a Triton
kernel for NVIDIA GPUs (``vitslim.kernels.triton.token_selection``, which has the arithmetic). The op on a CPU is the
plain form. The LayerNorm that reads the active tokens next is not part of a kernel: Inductor joins it to the gather by
itself.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitslim.kernels.dispatch import use_triton
from vitslim.kernels.tokens import inverse, take

MOST_SCORES = 4096
"""The Triton kernel compares every score with every other; above this torch sorts."""


def class_row(
    query: Float[Tensor, "b h 1 e"], key: Float[Tensor, "b h n e"], bias: Tensor | None, scale: float
) -> Float[Tensor, "b h n"]:
    """One query's row of the attention, per head; the softmax in float32, the row in the query's type.

    Args:
        bias: added to the scores, broadcastable to (b, h, 1, n).
        scale: factor of the scores.
    """
    if bias is None and _reads_by_kernel(query, key):
        return torch.ops.vitslim.class_row(query, key, scale)
    return plain_class_row(query, key, bias, scale)


def argsort_by_score(scores: Float[Tensor, "b p"], prefix: int) -> tuple[Float[Tensor, "b p"], Int[Tensor, "b n"]]:
    """The scores in falling order, and the indices of all tokens then: the prefix first, the patches by score.

    Equal scores go to the lower index, so that every runtime chooses alike. Exports as one TopK.
    """
    if _ranks_by_kernel(scores):
        return torch.ops.vitslim.argsort_by_score(scores, prefix)
    return plain_argsort_by_score(scores, prefix)


def gather_split(
    first: Float[Tensor, "b f d"], second: Float[Tensor, "b s d"] | None, indices: Int[Tensor, "b n"], ahead: int
) -> tuple[Float[Tensor, "b a d"], Float[Tensor, "b w d"]]:
    """The tokens (first, second) in another order, cut in two.

    Args:
        second: what stands behind ``first``, if anything does.
        indices: for each of all n = f + s tokens of the new order, where it stood.
        ahead: a, how many of them come into the first part.
    """
    if not _moves_by_kernel(first, second):
        return plain_gather_split(first, second, indices, ahead)
    if _left_to_inductor(second):
        return take(first, indices[:, :ahead]), take(first, indices[:, ahead:])
    return torch.ops.vitslim.gather_split(first, _rest(first, second), indices, ahead)


def scatter_back(
    first: Float[Tensor, "b f d"], second: Float[Tensor, "b s d"] | None, order: Int[Tensor, "b n"]
) -> Float[Tensor, "b n d"]:
    """The tokens (first, second) where they belong: row i to place ``order[i]``; the opposite of ``gather_split``.

    Args:
        order: a permutation for each image.
    """
    if _moves_by_kernel(first, second):
        return torch.ops.vitslim.scatter_back(first, _rest(first, second), order, order.shape[1])[0]
    return take(_joined(first, second), inverse(order))


def plain_class_row(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """``vitslim::class_row`` in torch's own operators."""
    # A^[CLS] = softmax(q_cls Kᵀ e^-½ + bias)
    scores = (query * scale) @ key.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return _wide(scores).softmax(dim=-1).squeeze(2).to(query.dtype)


def plain_argsort_by_score(scores: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    """``vitslim::argsort_by_score`` in torch's own operators."""
    if torch.onnx.is_in_onnx_export():
        # ONNX's TopK keeps the order of equals by definition, torch's does not; torch's stable sort has no ONNX form.
        falling, patches = scores.topk(scores.shape[1], dim=1)
    else:
        falling, patches = scores.sort(dim=1, descending=True, stable=True)
    front = torch.arange(prefix, device=scores.device).expand(scores.shape[0], -1)
    return falling, torch.cat([front, patches + prefix], dim=1)


def plain_gather_split(first: Tensor, second: Tensor | None, indices: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    """``vitslim::gather_split`` in torch's own operators."""
    rows = take(_joined(first, second), indices)
    return rows[:, :ahead], rows[:, ahead:]


def plain_scatter_back(first: Tensor, second: Tensor, indices: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    """``vitslim::scatter_back`` in torch's own operators: ``gather_split`` undone, ``ahead`` rows in the first part."""
    return plain_gather_split(first, second, inverse(indices), ahead)


def _left_to_inductor(second: Tensor | None) -> bool:
    """Whether ``torch.compile`` is at work and better takes the tokens apart by itself.

    Of two gathers Inductor makes one kernel for the residual add before, the active rows and the norm behind, and one
    for the inactive rows. With gradients the op is better, whose backward is a move again, where that of a gather adds
    rows by atomics.
    """
    return second is None and torch.compiler.is_compiling() and not torch.is_grad_enabled()


def _moves_by_kernel(first: Tensor, second: Tensor | None) -> bool:
    """Whether a kernel moves rows of these two."""
    rows = first.shape[1] + (0 if second is None else second.shape[1])
    return use_triton(first, "token_selection", rows) and (second is None or second.dtype == first.dtype)


def _rest(first: Tensor, second: Tensor | None) -> Tensor:
    """What stands behind ``first``, of no rows where there is nothing."""
    # No view of ``first``, whose gradient would then be a sum with zeros.
    return first.new_empty(first.shape[0], 0, first.shape[2]) if second is None else second


def _copied_split(first: Tensor, second: Tensor, indices: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    """``plain_gather_split`` in memory of its own, as an op has to give it."""
    ahead_part, rest_part = plain_gather_split(first, second, indices, ahead)
    return ahead_part.clone(), rest_part.clone()


def _copied_back(first: Tensor, second: Tensor, indices: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    """``plain_scatter_back`` in memory of its own."""
    return _copied_split(first, second, inverse(indices), ahead)


def _wide(values: Tensor) -> Tensor:
    """In float32, or wider where they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _joined(first: Tensor, second: Tensor | None) -> Tensor:
    return first if second is None else torch.cat([first, second], dim=1)


def _reads_by_kernel(query: Tensor, key: Tensor) -> bool:
    return query.dtype == key.dtype and use_triton(key, "token_selection", key.shape[2])


def _ranks_by_kernel(scores: Tensor) -> bool:
    return scores.shape[1] <= MOST_SCORES and use_triton(scores, "token_selection", scores.shape[1])


def _plain_row(query: Tensor, key: Tensor, scale: float) -> Tensor:
    return plain_class_row(query, key, None, scale)


_class_row = torch.library.custom_op("vitslim::class_row", _plain_row, mutates_args=())


@_class_row.register_kernel("cuda")
def _class_row_cuda(query: Tensor, key: Tensor, scale: float) -> Tensor:
    if not _reads_by_kernel(query, key):
        return _plain_row(query, key, scale)
    from vitslim.kernels.triton import token_selection

    return token_selection.class_row(query, key, scale)


@_class_row.register_fake
def _class_row_shape(query: Tensor, key: Tensor, scale: float) -> Tensor:
    return query.new_empty(key.shape[:3])


def _remember_row(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, key, ctx.scale = inputs
    ctx.save_for_backward(query, key, output)


def _row_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    query, key, row = ctx.saved_tensors
    # dS = A ∘ (dA - (A · dA) 1);  dq = dS K e^-½;  dK = dSᵀ q e^-½
    weighted = _wide(row) * grad
    slopes = weighted - row * weighted.sum(dim=-1, keepdim=True)
    slopes = (slopes * ctx.scale).to(key.dtype).unsqueeze(2)
    return slopes @ key, slopes.transpose(2, 3) * query, None


_class_row.register_autograd(_row_gradient, setup_context=_remember_row)


_argsort_by_score = torch.library.custom_op("vitslim::argsort_by_score", plain_argsort_by_score, mutates_args=())


@_argsort_by_score.register_kernel("cuda")
def _argsort_by_score_cuda(scores: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    if not _ranks_by_kernel(scores):
        return plain_argsort_by_score(scores, prefix)
    from vitslim.kernels.triton import token_selection

    return token_selection.argsort_by_score(scores, prefix)


@_argsort_by_score.register_fake
def _argsort_by_score_shape(scores: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
    images, patches = scores.shape
    return scores.new_empty(images, patches), scores.new_empty(images, prefix + patches, dtype=torch.int64)


def _remember_indices(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.prefix = inputs[1]
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def _argsort_by_score_gradient(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (indices,) = ctx.saved_tensors
    return torch.empty_like(grad).scatter(1, indices[:, ctx.prefix :] - ctx.prefix, grad), None


_argsort_by_score.register_autograd(_argsort_by_score_gradient, setup_context=_remember_indices)


_gather_split = torch.library.custom_op("vitslim::gather_split", _copied_split, mutates_args=())
_scatter_back = torch.library.custom_op("vitslim::scatter_back", _copied_back, mutates_args=())


@_gather_split.register_kernel("cuda")
def _gather_split_cuda(first: Tensor, second: Tensor, indices: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    if not _moves_by_kernel(first, second):
        return _copied_split(first, second, indices, ahead)
    from vitslim.kernels.triton import token_selection

    return token_selection.moved(first, second, indices, ahead, scatter=False)


@_scatter_back.register_kernel("cuda")
def _scatter_back_cuda(first: Tensor, second: Tensor, indices: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    if not _moves_by_kernel(first, second):
        return _copied_back(first, second, indices, ahead)
    from vitslim.kernels.triton import token_selection

    return token_selection.moved(first, second, indices, ahead, scatter=True)


@_gather_split.register_fake
@_scatter_back.register_fake
def _moved_shape(first: Tensor, second: Tensor, indices: Tensor, ahead: int) -> tuple[Tensor, Tensor]:
    images, count = indices.shape
    width = first.shape[2]
    return first.new_empty(images, ahead, width), first.new_empty(images, count - ahead, width)


def _remember_move(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    first, _, indices, _ = inputs
    ctx.ahead = first.shape[1]
    ctx.save_for_backward(indices)


def _scatter_back_gradients(ctx: Any, first: Tensor, second: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.vitslim.scatter_back(first, second, *ctx.saved_tensors, ctx.ahead), None, None


def _gather_split_gradients(ctx: Any, first: Tensor, second: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.vitslim.gather_split(first, second, *ctx.saved_tensors, ctx.ahead), None, None


_gather_split.register_autograd(_scatter_back_gradients, setup_context=_remember_move)
_scatter_back.register_autograd(_gather_split_gradients, setup_context=_remember_move)
