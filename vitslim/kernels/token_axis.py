"""Matrices that have one column for each token of an image, and what happens to them when the patch grid changes."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def resized(
    matrix: Float[Tensor, "m n"],
    prefix: int,
    grid: tuple[int, int],
    wanted: tuple[int, int],
    *,
    keeps_sums: bool = False,
) -> Float[Tensor, "m n_wanted"]:
    """Each row of the matrix, seen as an image over the patch grid, at another size; like a position embedding.

    Args:
        matrix: columns are the tokens, the prefix first, then the patches row by row.
        grid: rows and columns of patches now.
        wanted: rows and columns of patches then; the same grid gives the same matrix.
        keeps_sums: keep the sum of a row over the patches rather than the size of its entries: for a matrix that sums
            over tokens.
    """
    if grid == wanted:
        return matrix
    image = matrix[:, prefix:].unflatten(1, grid).unsqueeze(1)
    patches = F.interpolate(image, size=wanted, mode="bilinear", align_corners=False).flatten(1)
    if keeps_sums:
        patches = patches * (math.prod(grid) / math.prod(wanted))
    return torch.cat([matrix[:, :prefix], patches], dim=1)


def regions(grid: tuple[int, int], count: int) -> Float[Tensor, "r p"]:
    """At most ``count`` blurred regions that cover a patch grid evenly; each row sums to 1 over the patches.

    They are the tents of a bilinear interpolation from a coarse grid, as square as the count allows: 5 by 6 regions for
    32 on 14 by 14 patches.
    """
    rows = min(grid[0], max(1, round(math.sqrt(count * grid[0] / grid[1]))), count)
    columns = min(grid[1], count // rows)
    corners = torch.eye(rows * columns).reshape(-1, 1, rows, columns)
    tents = F.interpolate(corners, size=grid, mode="bilinear", align_corners=False).flatten(1)
    return tents / tents.sum(dim=1, keepdim=True)


def columns_at(matrix: Float[Tensor, "m n"], indices: Tensor) -> Float[Tensor, "b m k"]:
    """The columns of the tokens at ``indices`` (b, k), for each image."""
    return matrix.index_select(1, indices.flatten()).unflatten(1, indices.shape).transpose(0, 1)
