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

from vitslim.models.adapter import ATTENTION_INPUTS, MLP_INPUTS, BlockAdapter
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
            narrow_block_(block, adapter, basis)
        return
    if measured is None:
        covariance = written_covariance(blocks.values())
        measured = [(covariance, covariance)] * (max(blocks) + 1)
    basis = basis_of(torch.stack([one for pair in measured for one in pair]).mean(0), width)
    narrow.weight.copy_(basis)
    widen.weight.copy_(basis.T)
    for index, block in blocks.items():
        first, second = measured[index]
        scales = (norm_scale(first, basis), norm_scale(second, basis))
        narrow_block_(block, adapter, basis.to(parameter), scales)


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
def written_covariance(blocks: Iterable[nn.Module]) -> Float[Tensor, "d d"]:
    """For want of images: Σ W Wᵀ of all maps that write to the stream."""
    grams: list[Tensor] = []
    for block in blocks:
        # as far as a conversion has left them
        maps = [getattr(getattr(block, branch), name, None) for branch, name in (("attn", "proj"), ("mlp", "fc2"))]
        for weight in (one.weight.double() for one in maps if one is not None):
            centred = weight - weight.mean(0)
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


def narrow_block_(
    block: nn.Module,
    adapter: BlockAdapter,
    basis: Float[Tensor, "w d"],
    scales: tuple[float, float] = (1.0, 1.0),
) -> None:
    """Let a block read and write the coordinates of the stream in a basis, in place of its d channels.

    A norm over fewer channels gives larger numbers; ``scales`` make up for that, in front of attention and MLP.
    """
    branches = (("norm1", "attn", ATTENTION_INPUTS, "proj"), ("norm2", "mlp", MLP_INPUTS, "fc2"))
    for (norm, branch, inputs, output), layer_scale, scale in zip(branches, adapter.layer_scales, scales, strict=True):
        part: Any = getattr(block, branch)
        reading = [one for name in inputs if isinstance(one := getattr(part, name, None), nn.Linear)]
        if not reading:  # dropped by a conversion
            continue
        _read_coordinates_(getattr(block, norm), part, reading, basis, scale)
        owner, _, gamma = layer_scale.rpartition(".")
        _write_coordinates_(getattr(part, output), block.get_submodule(owner), gamma, basis)


def _read_coordinates_(
    norm: nn.LayerNorm, part: nn.Module, reading: list[nn.Linear], basis: Float[Tensor, "w d"], scale: float
) -> None:
    """Fold a norm's scale γ and shift β, and the basis B, into the maps that read it, W.

    W (γ n + β) = (W γ Bᵀ) n' + W β, the last in the maps' biases. Of maps that have none it is W' b', as near as can
    be, with b' the shift of the norm over coordinates.
    """
    weight = torch.cat([linear.weight for linear in reading])
    scaled = weight * norm.weight
    turned, shift = scale * scaled @ basis.T, weight @ norm.bias
    places = [place for linear in reading for place in _bias_places(part, linear)]
    sizes = [rows for rows, _, _ in places]
    within = turned.new_zeros(len(basis))
    if any(owner is None for _, owner, _ in places):
        # Coordinates sum to zero: what W' does to the constant direction, which the basis has not, is for b' alone.
        turned = turned + scaled.sum(1, keepdim=True) / len(basis)
        rows, aims = (
            torch.cat([one for one, (_, owner, _) in zip(whole.split(sizes), places, strict=True) if owner is None])
            for whole in (turned.double(), shift.double())
        )
        gram = rows.T @ rows
        ridge = 1e-9 * gram.diagonal().mean() + 1e-30
        within = torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), rows.T @ aims).to(turned)
        shift = shift - turned @ within
    for linear, rows in zip(reading, turned.split([linear.out_features for linear in reading]), strict=True):
        _set_(linear, "weight", rows)
        linear.in_features = len(basis)
    for rows, (_, owner, name) in zip(shift.split(sizes), places, strict=True):
        if owner is not None:
            _set_(owner, name, getattr(owner, name) + rows)
    _set_(norm, "weight", torch.ones_like(within))
    _set_(norm, "bias", within)
    norm.normalized_shape = (len(basis),)


def _bias_places(part: nn.Module, linear: nn.Linear) -> list[tuple[int, nn.Module | None, str]]:
    """Where the biases of a map's outputs lie: how many, the module, the parameter; no module where they have none."""
    outputs = linear.out_features
    if cast("Tensor | None", linear.bias) is not None:
        return [(outputs, linear, "bias")]
    if linear is getattr(part, "qkv", None) and getattr(part, "q_bias", None) is not None:
        # The keys' is a buffer of zeros that is not saved.
        return [(outputs // 3, part, "q_bias"), (outputs // 3, None, ""), (outputs // 3, part, "v_bias")]
    return [(outputs, None, "")]


def _write_coordinates_(linear: nn.Linear, owner: nn.Module, name: str, basis: Float[Tensor, "w d"]) -> None:
    """Fold a LayerScale, where there is one, and the basis into the map that writes."""
    gamma = getattr(owner, name, None)
    kept = basis if gamma is None else basis * gamma
    if cast("Tensor | None", linear.bias) is not None:
        _set_(linear, "bias", kept @ linear.bias)
    _set_(linear, "weight", kept @ linear.weight)
    linear.out_features = len(basis)
    if gamma is not None:
        _set_(owner, name, gamma.new_ones(len(basis)))


def _set_(owner: nn.Module, name: str, value: Tensor) -> None:
    """Give a parameter another value, of another size."""
    old = getattr(owner, name)
    setattr(owner, name, nn.Parameter(value.detach().to(old).clone(), old.requires_grad))


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
