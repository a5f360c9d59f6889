"""The low-rank part of a matrix."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def low_rank_factors(matrix: Float[Tensor, "o i"], rank: int) -> tuple[Float[Tensor, "o r"], Float[Tensor, "r i"]]:
    """B and A whose product is the best approximation of a matrix by one of that rank.

    One factor is orthonormal, the other carries the singular values: B A = U_r S_r V_rᵀ. At full rank the product is
    the matrix itself to rounding in float64. A matrix of zeros gives one factor of zeros, never two, so that training
    can leave it.

    Args:
        rank: r, at most the smaller side.

    Source: Bae et al., "Relaxed Recursive Transformers", arXiv 2410.20672, section 2.3, where S_r always stands with
    U_r; here it stands on the longer side, whose factor then needs no division by small singular values.
    """
    wide = matrix.double()
    rows, columns = matrix.shape
    if columns <= rows:
        # The eigenvectors of MᵀM are V; eigh gives them in ascending order of the squared singular values.
        right = torch.linalg.eigh(wide.T @ wide).eigenvectors[:, -rank:].flip(1) if rank else wide.new_zeros(columns, 0)
        return wide @ right, right.T
    left = torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -rank:].flip(1) if rank else wide.new_zeros(rows, 0)
    return left, left.T @ wide
