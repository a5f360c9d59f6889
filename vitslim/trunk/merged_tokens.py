"""The token state in which some tokens stand for several patches each."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.kernels.token_selection import argsort_by_score
from vitslim.kernels.tokens import inverse, take
from vitslim.models import Context
from vitslim.trunk.tokens import context_at, pairs_at


@dataclass(frozen=True)
class MergedTokens:
    """The prefix, and for every group of patches one token, their mean.

    A merged token has the place of the patch that the others joined: its rotary angles, its row and column of a bias.
    The mean of a group's angles would be another candidate, but similar patches may lie far apart, where unit vectors
    cancel and their mean points nowhere; and the mean of a bias over pairs of groups would take n² products.

    Args:
        prefix: tokens at the front that are no patches; they are never merged.
        sizes: how many patches each group has.
        indices: for each group the patch whose place it has, by its natural index without the prefix.
        groups: for each patch, in natural order, its group.
    """

    prefix: int
    sizes: Float[Tensor, "b m"]
    indices: Int[Tensor, "b m"]
    groups: Int[Tensor, "b p"]

    @classmethod
    def single(cls, tokens: Float[Tensor, "b n d"], prefix: int) -> MergedTokens:
        """Every patch is a group."""
        patches = torch.arange(tokens.shape[1] - prefix, device=tokens.device).expand(tokens.shape[0], -1)
        return cls(prefix, torch.ones_like(patches, dtype=torch.float32), patches, patches)

    def merge(
        self, tokens: Float[Tensor, "b n d"], features: Float[Tensor, "b m e"], count: int
    ) -> tuple[Float[Tensor, "b k d"], MergedTokens]:
        """Join the groups that are most alike, so many pairs of them; those that stay apart come first.

        The groups at even indices (A) seek the most similar at an odd index (B); of these edges the top r count.

        Args:
            features: of each group, compared by their cosine.
            count: r, at most half of the groups, rounded up.
        """
        prefix, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        a, b = patches[:, ::2], patches[:, 1::2]
        best, partner = _edges(features)
        _, order = argsort_by_score(best, 0)
        leaving, staying = order[:, :count], order[:, count:]
        apart = staying.shape[1]
        target = take(partner, leaving)
        # s_ij = size of the i-th group that leaves, where it joins j of B
        joins = target.unsqueeze(1) == torch.arange(b.shape[1], device=tokens.device).unsqueeze(1)
        joined = joins * take(self.sizes[:, ::2], leaving).unsqueeze(1)
        own = self.sizes[:, 1::2]
        sizes = own + joined.sum(dim=2)
        # x_j ← (s_j x_j + Σ_i s_ij x_i) / (s_j + Σ_i s_ij)
        share, kept = (joined / sizes.unsqueeze(2)).to(tokens.dtype), (own / sizes).to(tokens.dtype)
        with _own_precision(tokens):  # the residual stream keeps its precision
            mean = kept.unsqueeze(2) * b + share @ take(a, leaving)
        state = replace(
            self,
            sizes=torch.cat([take(self.sizes[:, ::2], staying), sizes], dim=1),
            indices=torch.cat([take(self.indices[:, ::2], staying), self.indices[:, 1::2]], dim=1),
            groups=take(_moves(order, partner, b.shape[1], apart), self.groups),
        )
        return torch.cat([prefix, take(a, staying), mean], dim=1), state

    def restore(self, tokens: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        """The prefix, and for every patch the token of its group."""
        return torch.cat([tokens[:, : self.prefix], take(tokens[:, self.prefix :], self.groups)], dim=1)

    def select_context(self, context: Context) -> Context:
        """The block's keyword arguments (rotary angles, masks) at the indices of the groups."""
        return context_at(context, self.active_indices(), self.prefix)

    def active_indices(self) -> Int[Tensor, "b m"]:
        """The natural index of each token."""
        front = torch.arange(self.prefix, device=self.indices.device).expand(self.indices.shape[0], -1)
        return torch.cat([front, self.indices + self.prefix], dim=1)

    def select_pairs(self, pairs: Tensor) -> Tensor:
        """Rows and columns at the indices of the groups, from a mask or bias that broadcasts to (b, h, n, n)."""
        return pairs_at(pairs, self.active_indices())

    def key_bias(self) -> Float[Tensor, "b 1 1 m"]:
        """Added to the scores: a key that stands for s patches counts s times."""
        # softmax(q Kᵀ e^-½ + log s)
        return F.pad(self.sizes.log(), (self.prefix, 0))[:, None, None]

    def whole_z(self, z: Tensor) -> Tensor:
        raise ConfigError("a step reuses the attention output of single patches, but they were merged")

    def part_z(self, whole: Tensor) -> tuple[Tensor, MergedTokens]:
        raise ConfigError("a step reuses the attention output of single patches, but they were merged")


def _edges(features: Float[Tensor, "b m e"]) -> tuple[Float[Tensor, "b a"], Int[Tensor, "b a"]]:
    """For each group of A the largest cosine to one of B, and which of B that is."""
    with _own_precision(features):  # half precision would make many edges equal
        unit = F.normalize(features.float(), dim=2)
        return (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=2)


def _own_precision(tokens: Tensor) -> AbstractContextManager[Any]:
    """No autocast where there is one; on the meta device there is none."""
    kind = tokens.device.type
    cast = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if cast else nullcontext()


def _moves(order: Int[Tensor, "b a"], partner: Int[Tensor, "b a"], others: int, apart: int) -> Int[Tensor, "b m"]:
    """For each group its index among the new ones: first ``apart`` of A, then all of B."""
    rank, merged = inverse(order), order.shape[1] - apart
    of_a = torch.where(rank < merged, apart + partner, rank - merged)
    of_b = (apart + torch.arange(others, device=order.device)).expand(order.shape[0], -1)
    # A and B alternate: 0 of A, 0 of B, 1 of A ...
    at = torch.arange(order.shape[1] + others, device=order.device)
    return torch.cat([of_a, of_b], dim=1).index_select(1, at % 2 * order.shape[1] + at // 2)
