"""Least squares for the last linear layers of new modules, from streamed sums."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitslim.models import DenseTrace
from vitslim.trunk import LastLinear, Trunk

# Times the mean of the diagonal: hidden channels that barely move would get huge weights, which training then fights.
RIDGE = 1e-3


@dataclass
class _Sums:
    """XᵀX and XᵀY of one layer over all samples so far, X with a column of ones for the bias."""

    layer: nn.Linear
    gram: Float[Tensor, "f1 f1"]
    cross: Float[Tensor, "f1 d"]


@torch.no_grad()
def fit_last_layers_(trunk: Trunk, traces: Iterable[DenseTrace]) -> int:
    """Set the last linear layer of every new module that has one to its best weights for these traces.

    Memory does not depend on the number of traces.

    Returns:
        How many layers were set.
    """
    sums: list[_Sums] = []
    for dense in traces:
        problems = trunk.last_linears(dense)
        if not sums:
            sums = [_empty(problem) for problem in problems]
        _add_(sums, problems)
    for one in sums:
        _solve_(one)
    return len(sums)


def _empty(problem: LastLinear) -> _Sums:
    features, outputs = problem.layer.in_features + 1, problem.layer.out_features
    new = problem.inputs.new_zeros
    return _Sums(
        problem.layer, new(features, features, dtype=torch.float64), new(features, outputs, dtype=torch.float64)
    )


def _add_(sums: Sequence[_Sums], problems: Sequence[LastLinear]) -> None:
    for one, problem in zip(sums, problems, strict=True):
        inputs = problem.inputs.double()
        inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
        one.gram += inputs.T @ inputs
        one.cross += inputs.T @ problem.targets.double()


def _solve_(sums: _Sums) -> None:
    # W = (XᵀX + λI)⁻¹ XᵀY, the bias left out of the penalty
    penalty = RIDGE * sums.gram.diagonal()[:-1].mean() * torch.ones_like(sums.gram[0])
    penalty[-1] = 0.0
    solution = torch.linalg.solve(sums.gram + penalty.diag(), sums.cross)
    sums.layer.weight.copy_(solution[:-1].T)
    if sums.layer.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        sums.layer.bias.copy_(solution[-1])
