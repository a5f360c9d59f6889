"""Taking tokens of each image by index, without scatter and without shapes that depend on the data.

*indices* (b, m) name for each image which m of its n tokens are taken. A permutation of all tokens is
undone by its ``inverse``.
"""

import torch
from jaxtyping import Int, Shaped
from torch import Tensor


def take(tokens: Shaped[Tensor, "b n *d"], indices: Int[Tensor, "b m"]) -> Shaped[Tensor, "b m *d"]:
    """The tokens that stand at ``indices``."""
    batch, count = tokens.shape[:2]
    # Rows of one long table: a plain Gather, where gather(dim=1) wants an index as wide as the tokens and takes ONNX
    # Runtime three times as long (197 tokens of 384).
    rows = indices + count * torch.arange(batch, device=indices.device).unsqueeze(1)
    return tokens.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, (batch, indices.shape[1]))


def inverse(indices: Int[Tensor, "b n"]) -> Int[Tensor, "b n"]:
    """The indices that undo a permutation: take by ``indices``, take by its inverse, and all is as it was."""
    # As float, exact below 2²⁴, since some compilers sort nothing else; a scatter would be a data-dependent write.
    return indices.float().argsort(dim=1)


def take_shared(table: Shaped[Tensor, "h n f"], indices: Int[Tensor, "b m"]) -> Shaped[Tensor, "b h m f"]:
    """Rows of one table that all images share, such as rotary angles per head."""
    batch, count = indices.shape
    rows = table.index_select(1, indices.flatten()).unflatten(1, (batch, count))
    return rows.transpose(0, 1)


def take_pairs(pairs: Shaped[Tensor, "#b h rows n"], indices: Int[Tensor, "b m"]) -> Shaped[Tensor, "b h rows_m m"]:
    """Rows and columns at ``indices`` of what is given for pairs of tokens, such as a bias of the attention scores.

    Args:
        pairs: for all images or for each; with a single row, which serves all, that row stays single.
    """
    columns = indices.unsqueeze(1)
    if pairs.shape[0] == 1:
        # One gather from the flattened table, in place of rows first and columns then.
        index = columns if pairs.shape[2] == 1 else indices.unsqueeze(2) * pairs.shape[3] + columns
        picked = pairs[0].flatten(1).index_select(1, index.flatten()).unflatten(1, index.shape)
        return picked.transpose(0, 1)
    if pairs.shape[2] > 1:
        pairs = pairs.take_along_dim(indices[:, None, :, None], dim=2)
    return pairs.take_along_dim(columns.unsqueeze(1), dim=3)
