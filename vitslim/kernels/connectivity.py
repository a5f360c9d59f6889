"""A guess at attention rows, for less than the attention itself costs.

Source: Wei et al., "Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers", CVPR
2023, arXiv 2303.13755, section 3.2; the start at regions is ours.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitslim.kernels.token_axis import regions, resized


class ConnectivityPredictor(nn.Module):
    """Guesses the attention rows of the patch queries from narrow queries and a few summed keys.

    Args:
        width: e of one head; the linear maps are shared by all heads.
        scale: s, factor of the coefficients' logits.
        prefix: number of tokens that are no patches.
        grid: patch grid for which the matrices are stored.
        rows: m, rows of the basis.
    """

    def __init__(self, width: int, scale: float, prefix: int, grid: tuple[int, int], rows: int) -> None:
        super().__init__()
        self.scale = scale
        self.prefix = prefix
        self.grid = grid
        # c = e / 2 (the authors' reduce_c_factor)
        narrow = max(1, width // 2)
        tokens = prefix + math.prod(grid)
        self.query = nn.Linear(width, narrow)
        self.key = nn.Linear(width, narrow)
        self.down = nn.Parameter(torch.empty(rows, tokens))
        self.basis = nn.Parameter(torch.empty(rows, tokens))

    def matrices(self, grid: tuple[int, int]) -> tuple[Float[Tensor, "m n"], Float[Tensor, "m n"]]:
        """P and basis for a patch grid."""
        down = resized(self.down, self.prefix, self.grid, grid, keeps_sums=True)
        return down, resized(self.basis, self.prefix, self.grid, grid)

    def forward(
        self, query: Float[Tensor, "b h p e"], key: Float[Tensor, "b h n e"], down: Float[Tensor, "*b m n"]
    ) -> Float[Tensor, "b h p m"]:
        """The coefficients of each patch query; rows sum to 1."""
        down = down if down.ndim == 2 else down.unsqueeze(1)
        # K_down = P (K W_kᵀ + 1 b_kᵀ) = (P K) W_kᵀ + (P 1) b_kᵀ
        key_down = F.linear(down @ key, self.key.weight) + down.sum(dim=-1, keepdim=True) * self.key.bias
        # coef = softmax(s (Q W_qᵀ + 1 b_qᵀ) K_downᵀ) = softmax(s (Q (K_down W_q)ᵀ + 1 (K_down b_q)ᵀ))
        logits = query @ (key_down @ self.query.weight).transpose(-2, -1)
        logits = logits + (key_down * self.query.bias).sum(dim=-1).unsqueeze(-2)
        return (self.scale * logits.float()).softmax(dim=-1)

    @torch.no_grad()
    def start_at_random_(self) -> None:
        """The authors' start: all matrices of deviation 0.02, biases zero."""
        for matrix in (self.query.weight, self.key.weight, self.down, self.basis):
            nn.init.trunc_normal_(matrix, std=0.02)
        nn.init.zeros_(self.query.bias)
        nn.init.zeros_(self.key.bias)

    @torch.no_grad()
    def start_at_regions_(self, query: Float[Tensor, "1 h s e"], key: Float[Tensor, "1 h s e"]) -> None:
        """Start as dense attention to the mean keys of regions of the grid, each spread evenly over its region.

        The two linear maps start as one projection onto the directions in which q and k are largest, so that the
        products of narrow q and k come near those of the wide ones.

        Args:
            query: some queries of all heads that share the predictor.
            key: some keys.
        """
        self.start_at_random_()
        seen = [rows.flatten(0, 2).double() for rows in (query, key)]
        moments = [rows.T @ rows / rows.square().sum().clamp_min(1e-12) for rows in seen]
        _, directions = torch.linalg.eigh(moments[0] + moments[1])
        width, narrow = self.query.in_features, self.query.out_features
        # The last eigenvectors belong to the largest eigenvalues.
        shared = directions[:, width - narrow :].T.to(self.query.weight.dtype)
        # Attention's own factor e^-½ in place of s.
        self.query.weight.copy_(width**-0.5 / self.scale * shared)
        self.key.weight.copy_(shared)
        tents = regions(self.grid, self.down.shape[0]).to(self.down)
        for matrix in (self.down, self.basis):
            matrix[: len(tents), : self.prefix] = 0.0
            matrix[: len(tents), self.prefix :] = tents
