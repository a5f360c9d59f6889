"""The kernels of SkipAt and Evo-ViT to time beside torch's operators, and what a selection may cost."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vitslim.kernels.skip_function import plain_depthwise_gelu
from vitslim.kernels.token_selection import (
    plain_argsort_by_score,
    plain_class_row,
    plain_gather_split,
    plain_scatter_back,
)
from vitslim.kernels.triton.cases import HEADS, PREFIX, WIDTH, KernelCase, noise, patch_grid

_KEEP, _KERNEL = 0.5, 5  # half of the patches stay

SELECTION = ("class row", "argsort by score", "gather and split")
"""The cases that make up a selection, in the order of their list."""


def token_cases(device: torch.device | str, dtype: torch.dtype, tokens: int, batch: int) -> list[KernelCase]:
    """The parts of a selection, the way back and Φ's convolution, on DeiT-S's sizes.

    ``dense`` is torch's own form, on a GPU as ``torch.compile`` makes it; of the convolution also as shifted products,
    which Inductor fuses into one kernel where it calls cuDNN for a convolution. The whole selection's ``dense`` is what
    it should cost no more than, see ``selection_target``.

    Calls are safe to capture into a CUDA graph once they have run. Both forms of the convolution's gradient compute the
    convolution again.

    Args:
        tokens: one class token and a square of patches, such as those of ``TOKENS``.
        batch: images.

    Raises:
        ConfigError: the patches are no square.
    """
    (side, _), width = patch_grid(tokens), HEADS * WIDTH
    compiled = _compiled if torch.device(device).type == "cuda" else _as_it_is
    # What was compiled for other sizes counts against a limit, after which nothing is compiled any more.
    torch.compiler.reset()
    drawn = partial(noise, device, dtype)
    rows, joined = drawn(batch, tokens, width), drawn(batch, tokens, 3, HEADS, WIDTH)
    query, key = joined[:, :1, 0].transpose(1, 2), joined[:, :, 1].transpose(1, 2)
    scores = drawn(batch, side**2).float()
    indices = plain_argsort_by_score(scores, PREFIX)[1]
    ahead = PREFIX + int(_KEEP * side**2)
    first, second = plain_gather_split(rows, None, indices, ahead)
    nothing, ops, scale = rows[:, :0], torch.ops.vitslim, WIDTH**-0.5
    moved = 2 * _bytes(rows) + _bytes(indices)

    def case(
        name: str, call: Callable[[], Tensor], plain: Callable[[], Tensor], moves: int, macs: int = 0
    ) -> KernelCase:
        return KernelCase(name, tokens, torch.no_grad()(call), plain, moves, 2 * macs)

    found = [
        case(
            "class row",
            lambda: ops.class_row(query, key, scale),
            compiled(lambda: plain_class_row(query, key, None, scale)),
            _bytes(key),
            key.numel(),
        ),
        case(
            "argsort by score",
            lambda: ops.argsort_by_score(scores, 1)[1],
            compiled(lambda: plain_argsort_by_score(scores, 1)[1]),
            2 * _bytes(scores),
        ),
        case(
            "gather and split",
            lambda: ops.gather_split(rows, nothing, indices, ahead)[0],
            compiled(lambda: plain_gather_split(rows, None, indices, ahead)[0]),
            moved,
        ),
        case(
            "scatter back",
            lambda: ops.scatter_back(first, second, indices, tokens)[0],
            compiled(lambda: plain_scatter_back(first, second, indices, tokens)[0]),
            moved,
        ),
    ]
    target = selection_target(device, dtype, tokens, batch)

    def selected() -> Tensor:
        order = ops.argsort_by_score(ops.class_row(query, key, scale)[:, :, PREFIX:].float().mean(1), PREFIX)[1]
        return ops.gather_split(rows, nothing, order, ahead)[0]

    found.append(case("selection", selected, target, sum(one.bytes for one in found[: len(SELECTION)]), key.numel()))
    for expansion in (2.0, 0.5):
        hidden = drawn(batch, tokens, int(expansion * width))
        weight, bias = drawn(hidden.shape[2], 1, _KERNEL, _KERNEL), drawn(hidden.shape[2])
        given, grad = (hidden, weight, bias, side, side), drawn(batch, side**2, hidden.shape[2])
        macs = grad.numel() * _KERNEL**2
        for name, plain in {"": plain_depthwise_gelu, " beside shifted products": shifted_depthwise_gelu}.items():
            form = compiled(plain)
            call, dense = partial(ops.depthwise_gelu, *given), partial(form, hidden[:, 1:], *given[1:])
            found.append(case(f"convolution, expansion {expansion:g}{name}", call, dense, 2 * _bytes(grad), macs))
            call, dense = partial(_gradient, grad, *given), partial(_plain_gradient, form, grad, *given)
            found.append(case(f"its gradient, expansion {expansion:g}{name}", call, dense, 3 * _bytes(grad), 3 * macs))
    return found


def shifted_depthwise_gelu(patches: Tensor, weight: Tensor, bias: Tensor, rows: int, columns: int) -> Tensor:
    """``plain_depthwise_gelu`` as one product for each tap, of the patches shifted to it."""
    kernel = weight.shape[-1]
    reach = kernel // 2
    grid = F.pad(patches.unflatten(1, (rows, columns)), (0, 0, reach, reach, reach, reach))
    # u[y, x] = b + Σ w[i, j] h[y + i - r, x + j - r] over the taps i, j, r being the reach
    summed = bias.float().expand(patches.shape[0], rows, columns, -1)
    for i in range(kernel):
        for j in range(kernel):
            summed = summed + grid[:, i : i + rows, j : j + columns].float() * weight[:, 0, i, j].float()
    return F.gelu(summed).to(patches.dtype).flatten(1, 2)


def selection_target(device: torch.device | str, dtype: torch.dtype, tokens: int, batch: int) -> Callable[[], Tensor]:
    """What a selection should cost no more than: one LayerNorm pass, and one read and one write of the tokens."""
    rows = noise(device, dtype, batch, tokens, HEADS * WIDTH)

    def passes() -> Tensor:
        rows.clone()
        return F.layer_norm(rows, rows.shape[2:])

    return passes


def _compiled(form: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(form, dynamic=False)


def _as_it_is(form: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return form


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _gradient(grad: Tensor, *given: Tensor | int) -> Tensor:
    return torch.ops.vitslim.depthwise_gelu_backward(grad, *given)[0]


def _plain_gradient(form: Callable[..., Tensor], grad: Tensor, *given: Tensor | int) -> Tensor:
    tensors = [part.detach().requires_grad_() for part in given if isinstance(part, Tensor)]
    sides = [part for part in given if isinstance(part, int)]
    with torch.enable_grad():
        activated = form(tensors[0][:, 1:], tensors[1], tensors[2], *sides)
    return torch.autograd.grad(activated, tensors, grad)[0]
