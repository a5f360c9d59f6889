"""Linear maps by a shared matrix and a residual to time against those by a matrix of their own."""

from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vitslim.kernels.low_rank_linear import low_rank_linear
from vitslim.kernels.triton.cases import KernelCase, noise

WIDTHS = (384, 768, 1024)
"""DeiT-S, DeiT-B, ViT-L."""

_MLP_RATIO = 4
_RANK_SHARE = 12  # SReT's default: a twelfth of the width


@dataclass(frozen=True)
class LinearMap:
    """Operands of one map: x, W', B, A and the bias."""

    operands: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Inner, columns, rank."""
        _, weight, up, _, _ = self.operands
        return weight.shape[1], weight.shape[0], up.shape[1]

    @property
    def shared_macs(self) -> int:
        """Multiply-accumulates of x W'ᵀ."""
        tokens, weight, *_ = self.operands
        return tokens.numel() * weight.shape[0]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of x W'ᵀ, x Aᵀ and the product with Bᵀ."""
        inner, columns, rank = self.shape
        return self.shared_macs + self.operands[0].numel() // inner * rank * (inner + columns)


def maps_of(device: torch.device | str, dtype: torch.dtype, width: int, rows: int) -> list[LinearMap]:
    """The four maps of a block: queries, keys and values; projection; the two of the MLP."""
    sides = ((width, 3 * width), (width, width), (width, _MLP_RATIO * width), (_MLP_RATIO * width, width))
    rank = width // _RANK_SHARE

    def drawn(*shape: int) -> Tensor:
        return noise(device, *shape).div_(shape[-1] ** 0.5).to(dtype)

    return [
        LinearMap((drawn(rows, inner), drawn(columns, inner), drawn(columns, rank), drawn(rank, inner), drawn(columns)))
        for inner, columns in sides
    ]


def linear_cases(device: torch.device | str, dtype: torch.dtype, tokens: int, batch: int) -> list[KernelCase]:
    """The maps of SReT's blocks on DeiT-S's and DeiT-B's sizes; ``dense`` is the map by a matrix of its own.

    Where there are many rows the call is three products, as in a model. Without gradients; safe to capture into a CUDA
    graph once they have run.
    """
    found: list[KernelCase] = []
    for width in WIDTHS[:2]:
        for one in maps_of(device, dtype, width, batch * tokens):
            inner, columns, _ = one.shape
            rows, weight, *_, bias = one.operands
            numbers = sum(part.numel() for part in one.operands) + rows.shape[0] * columns
            call = torch.no_grad()(partial(low_rank_linear, *one.operands, walked_again=True))
            dense = partial(F.linear, rows, weight, bias)
            name = f"shared linear map, {inner} to {columns}"
            found.append(KernelCase(name, tokens, call, dense, numbers * rows.element_size(), 2 * one.macs))
    return found
