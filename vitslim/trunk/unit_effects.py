"""How much each unit of a layer, a neuron or a head, moves what its output projection gives."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def unit_sums(inputs: Float[Tensor, "b n f"], units: int) -> Float[Tensor, "u e1 e1"]:
    """Products of each unit's outputs, with a one behind them, summed over all tokens in float64.

    Args:
        inputs: what the output projection reads, unit after unit.
        units: neurons, or heads of e = f / units channels.
    """
    rows = inputs.flatten(0, 1).double()
    each = rows.unflatten(-1, (units, -1)).transpose(0, 1)
    # Of neurons, each a channel of its own, the squares alone: a tenth of the time of as many tiny products.
    is_neurons = each.shape[2] == 1
    products = rows.square().sum(dim=0)[:, None, None] if is_neurons else each.transpose(1, 2) @ each
    sums = each.sum(dim=1).unsqueeze(2)
    count = sums.new_full((units, 1, 1), each.shape[1])
    return torch.cat([torch.cat([products, sums], dim=2), torch.cat([sums.transpose(1, 2), count], dim=2)], dim=1)


def unit_effects(sums: Float[Tensor, "u e1 e1"], weight: Float[Tensor, "d f"]) -> Float[Tensor, " u"]:
    """Mean square by which each unit moves the projection's output around its mean.

    The mean itself can be folded into the bias, so it does not count.

    Args:
        sums: of ``unit_sums``.
        weight: of the output projection.
    """
    count = sums[:, -1, -1].clamp_min(1.0)[:, None, None]
    mean = sums[:, :-1, -1:] / count
    covariance = sums[:, :-1, :-1] / count - mean @ mean.transpose(1, 2)
    # E ‖W_u (a_u - mean a_u)‖² = tr(W_u C_u W_uᵀ); for a neuron its variance times ‖w_u‖²
    maps = weight.double().unflatten(1, (len(sums), -1)).transpose(0, 1)
    return ((maps @ covariance) * maps).sum(dim=(1, 2))


def topk(effects: Float[Tensor, " u"], count: int) -> Int[Tensor, " k"]:
    """The units with the largest effects, in their order within the layer."""
    return effects.topk(count).indices.sort().values
