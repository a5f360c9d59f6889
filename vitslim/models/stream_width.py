"""A narrower stream between the blocks: the directions in which tokens differ most, in place of all d channels.

What the blocks read is normalised by LayerNorm, which takes the mean over the channels away. The basis is chosen in
what is left, and its coordinates are turned so that they sum to zero themselves: LayerNorm over the coordinates then
takes nothing away, and all channels in another basis are the same model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitslim.models.adapter import BlockAdapter
from vitslim.models.trace import trace


class WidenedNorm(nn.LayerNorm):
    """The model's last norm, behind the map from the stream's channels back to its own; parameters keep their names."""

    def __init__(self, norm: nn.LayerNorm, width: int) -> None:
        super().__init__(list(norm.normalized_shape), eps=norm.eps)
        self.weight, self.bias = norm.weight, norm.bias
        self.widen = _map(width, norm.normalized_shape[0], norm.weight)

    def forward(self, input: Float[Tensor, "*b n w"]) -> Float[Tensor, "*b n d"]:
        return super().forward(self.widen(input))


class NarrowedNorm(nn.LayerNorm):
    """The norm in front of the blocks that some models have, and the map to the stream's channels behind it."""

    def __init__(self, norm: nn.LayerNorm, width: int) -> None:
        super().__init__(list(norm.normalized_shape), eps=norm.eps)
        self.weight, self.bias = norm.weight, norm.bias
        self.narrow = _map(norm.normalized_shape[0], width, norm.weight)

    def forward(self, input: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b n w"]:
        return self.narrow(super().forward(input))


def stream_maps(model: nn.Module) -> list[nn.Linear]:
    """The maps onto a narrower stream and back, as far as there are some."""
    found: list[nn.Linear] = []
    for name, own in (("norm_pre", "narrow"), ("norm", "widen")):
        part: Any = getattr(model, name, None)
        found += [one for one in (part, getattr(part, own, None)) if isinstance(one, nn.Linear)]
    return found


def _map(inputs: int, outputs: int, like: Tensor) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False, device=like.device, dtype=like.dtype)


@torch.no_grad()
def narrow_stream_(
    model: nn.Module,
    blocks: Mapping[int, nn.Module],
    adapter: BlockAdapter,
    width: int,
    measured: Sequence[tuple[Tensor, Tensor]] | None = None,
    *,
    is_drawn: bool = True,
) -> None:
    """Put a model's blocks onto a stream of fewer channels; what surrounds them stays as wide as it is.

    Args:
        blocks: by their index in the dense model.
        measured: ``covariances``; ``None`` for that of what the blocks write.
        is_drawn: whether weights are wanted, and not only sizes.
    """
    parameter = next(parameter for block in blocks.values() for parameter in block.parameters())
    dense = int(cast(Any, model).embed_dim)
    narrow, widen = _around_(model, dense, width, parameter)
    if not is_drawn:
        basis = parameter.new_zeros(width, dense)
        for block in blocks.values():
            adapter.narrow_stream_(block, basis)
        return
    if measured is None:
        covariance = written_covariance(blocks.values(), adapter)
        measured = [(covariance, covariance)] * (max(blocks) + 1)
    basis = basis_of(torch.stack([one for pair in measured for one in pair]).mean(0), width)
    narrow.weight.copy_(basis)
    widen.weight.copy_(basis.T)
    for index, block in blocks.items():
        first, second = measured[index]
        adapter.narrow_stream_(block, basis.to(parameter), (norm_scale(first, basis), norm_scale(second, basis)))


def _around_(model: Any, dense: int, width: int, like: Tensor) -> tuple[nn.Linear, nn.Linear]:
    """The maps onto the stream and back, in the places of what is before and behind the blocks."""
    if isinstance(model.norm_pre, nn.LayerNorm):
        model.norm_pre = NarrowedNorm(model.norm_pre, width)
        narrow = model.norm_pre.narrow
    else:
        narrow = model.norm_pre = _map(dense, width, like)
    if isinstance(model.norm, nn.LayerNorm):
        model.norm = WidenedNorm(model.norm, width)
        widen = model.norm.widen
    else:
        widen = model.norm = _map(width, dense, like)
    return narrow, widen


@torch.no_grad()
def covariances(
    model: nn.Module, batches: Iterable[Float[Tensor, "b c h w"]]
) -> list[tuple[Float[Tensor, "d d"], Float[Tensor, "d d"]]]:
    """Of what each block's two norms read in the dense model, normalised: (in front of the attention, of the MLP)."""
    sums: list[list[Tensor]] = []
    count = 0
    for images in batches:
        found = trace(model, images)
        adapter = found.adapter
        for index, (block, tokens, z) in enumerate(zip(found.blocks, found.block_inputs, found.z, strict=True)):
            seen = [_normalised(one) for one in (tokens, adapter.add_attention(block, tokens, z))]
            grams = [one.T @ one for one in seen]
            if index == len(sums):
                sums.append(grams)
            else:
                sums[index] = [old + new for old, new in zip(sums[index], grams, strict=True)]
        count += found.block_inputs[0][..., 0].numel()
    return [(first / count, second / count) for first, second in sums]


@torch.no_grad()
def written_covariance(blocks: Iterable[nn.Module], adapter: BlockAdapter) -> Float[Tensor, "d d"]:
    """For want of images: Σ W Wᵀ of all maps that write to the stream."""
    grams: list[Tensor] = []
    for block in blocks:
        for layer in adapter.writing_maps(block):
            centred = layer.weight.double() - layer.weight.double().mean(0)
            grams.append(centred @ centred.T)
    return torch.stack(grams).sum(0)


def basis_of(covariance: Float[Tensor, "d d"], width: int) -> Float[Tensor, "w d"]:
    """Coordinates that sum to zero, along the w - 1 directions of the largest variance among centred tokens; float64.

    With w = d they are the centred tokens, turned.
    """
    dense = len(covariance)
    # eigenvectors of a centred covariance, the constant direction the last of them
    centring = torch.eye(dense, dtype=torch.float64, device=covariance.device) - 1 / dense
    _, vectors = torch.linalg.eigh(centring @ covariance.double() @ centring)
    leading = vectors.flip(1)[:, : width - 1]
    # (w, w - 1), orthonormal, each column summing to zero
    ones = torch.ones(width, 1, dtype=torch.float64, device=covariance.device)
    square = torch.linalg.qr(torch.cat([ones, torch.eye(width, device=ones.device, dtype=ones.dtype)[:, 1:]], 1))[0]
    return square[:, 1:] @ leading.T @ centring


def norm_scale(covariance: Float[Tensor, "d d"], basis: Float[Tensor, "w d"]) -> float:
    """What makes up for a norm over w coordinates in place of d channels.

    LN(x) = x √d / |x| against x' √w / |x'|, and |x'|² / |x|² is the share of the variance that the basis holds.
    """
    width, dense = basis.shape
    held = torch.trace(basis @ covariance.double() @ basis.T) / torch.trace(covariance.double())
    return math.sqrt(dense / width * float(held))


def _normalised(tokens: Tensor) -> Float[Tensor, "s d"]:
    flat = tokens.flatten(0, -2).double()
    flat = flat - flat.mean(-1, keepdim=True)
    return flat / flat.std(-1, unbiased=False, keepdim=True).clamp_min(1e-12)
