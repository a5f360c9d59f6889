"""The token state in which the first tokens of an order are active and the others are not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.kernels.token_selection import gather_split, scatter_back
from vitslim.kernels.tokens import take, take_pairs, take_shared
from vitslim.models import Context
from vitslim.trunk.stream import Stream

_PAIRS = ("attn_mask", "shared_rel_pos_bias")


@dataclass(frozen=True)
class SortedTokens:
    """All tokens in one order: the prefix, the active patches, the inactive ones.

    With ``shares`` one more token takes part, at the very end: the representative of the inactive ones, their weighted
    mean. They follow it, what it gains while they are inactive is added to each, or stay as they are (``frozen``). It
    has no place on the patch grid, hence neither rotary angle nor bias.

    Args:
        prefix: tokens at the front that are no patches; they always take part.
        scores: what the next selection goes by, one for each patch in this order; the owner's to keep up.
        order: for each place the token that stands there, by its natural index; ``None`` is the natural order.
        inactive: the tokens at the end of the order; ``None`` when all take part.
        inactive_z: ẑ of the inactive tokens, kept up where the next step asks for ẑ.
        shares: weight of each inactive token in the representative; the rows sum to 1.
        frozen: the inactive tokens stay as they were when they left, whatever the representative gains.
    """

    prefix: int
    scores: Float[Tensor, "b p"] | None = None
    order: Int[Tensor, "b n"] | None = None
    inactive: Float[Tensor, "b w d"] | None = None
    inactive_z: Float[Tensor, "b w d"] | None = None
    shares: Float[Tensor, "b w"] | None = None
    frozen: bool = False

    def join(
        self, tokens: Float[Tensor, "b m d"], z: Float[Tensor, "b m d"] | None
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"] | None, SortedTokens]:
        """All tokens take part again, in this order; ẑ follows where it is given."""
        z = None if z is None else _together(*self._z_parts(z))
        return _together(*self._parts(tokens)), z, replace(self, inactive=None, inactive_z=None, shares=None)

    def select(
        self,
        tokens: Float[Tensor, "b m d"],
        stream: Stream,
        indices: Int[Tensor, "b n"],
        active: int,
        shares: Float[Tensor, "b w"] | None = None,
    ) -> tuple[Float[Tensor, "b k d"], Stream]:
        """Sort all tokens anew; the first of them take part from now on, and ẑ follows where the stream has it.

        Args:
            stream: comes back with this state.
            indices: the new order in terms of this one; the prefix stays at the front.
            active: how many take part, the prefix included; fewer than there are.
            shares: if given, a representative takes part too.
        """
        order = indices if self.order is None else take(self.order, indices)
        tokens, inactive = gather_split(*self._parts(tokens), indices, active)
        state, z = replace(self, order=order, inactive=inactive, inactive_z=None, shares=shares), stream.z
        if z is not None:
            z, state = state._with_z(*gather_split(*self._z_parts(z), indices, active))
        return state._represented(tokens, inactive), replace(stream, z=z, token_state=state)

    def restore(self, tokens: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        """All n tokens in their natural order, from the active ones."""
        return self._in_natural_order(*self._parts(tokens))

    def whole_z(self, z: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        """ẑ of all n tokens in their natural order, from that of the active ones.

        Raises:
            ConfigError: ẑ of the inactive tokens is not known.
        """
        return self._in_natural_order(*self._z_parts(z))

    def part_z(self, whole: Float[Tensor, "b n d"]) -> tuple[Float[Tensor, "b m d"], SortedTokens]:
        """ẑ of the active tokens, from that of all n in their natural order, and the state that knows the rest."""
        if self.order is None:
            return whole, self
        if self.inactive is None:
            return take(whole, self.order), self
        return self._with_z(*gather_split(whole, None, self.order, whole.shape[1] - self.inactive.shape[1]))

    def select_context(self, context: Context) -> Context:
        """The block's keyword arguments (rotary angles, masks) for the active tokens.

        Raises:
            ConfigError: a tensor of unknown meaning; it might belong to the tokens.
        """
        if self.order is None:
            return context
        return context_at(context, self._active(self.order), self.prefix, represented=self.shares is not None)

    def active_indices(self) -> Int[Tensor, "b m"] | None:
        """The natural index of each active token, the representative left out; ``None`` is the natural order."""
        return None if self.order is None else self._active(self.order)

    def select_pairs(self, pairs: Tensor) -> Tensor:
        """Rows and columns of the active tokens, from a mask or bias that broadcasts to (b, h, n, n)."""
        if self.order is None:
            return pairs
        return pairs_at(pairs, self._active(self.order), represented=self.shares is not None)

    def key_bias(self) -> None:
        """Nothing: every token counts as one key."""

    def _parts(self, tokens: Tensor) -> tuple[Tensor, Tensor | None]:
        """The active tokens and the inactive ones, in this order."""
        if self.inactive is None or self.shares is None:
            return tokens, self.inactive
        if self.frozen:
            return tokens[:, :-1], self.inactive
        # x_j ← x_j + (what r gained in all branches while x_j was inactive)
        gained = tokens[:, -1:] - weighted_mean(self.inactive, self.shares)
        return tokens[:, :-1], self.inactive + gained

    def _z_parts(self, z: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.inactive is not None and self.inactive_z is None:
            raise ConfigError("a step reuses the attention output of tokens that took no part in the step before")
        return z if self.inactive is None or self.shares is None else z[:, :-1], self.inactive_z

    def _with_z(self, z: Tensor, inactive_z: Tensor) -> tuple[Tensor, SortedTokens]:
        return self._represented(z, inactive_z), replace(self, inactive_z=inactive_z)

    def _in_natural_order(self, active: Tensor, inactive: Tensor | None) -> Tensor:
        return _together(active, inactive) if self.order is None else scatter_back(active, inactive, self.order)

    def _represented(self, active: Tensor, inactive: Tensor) -> Tensor:
        return active if self.shares is None else torch.cat([active, weighted_mean(inactive, self.shares)], dim=1)

    def _active(self, order: Tensor) -> Tensor:
        return order if self.inactive is None else order[:, : order.shape[1] - self.inactive.shape[1]]


def context_at(context: Context, indices: Int[Tensor, "b m"], prefix: int, *, represented: bool = False) -> Context:
    """A block's keyword arguments for the tokens of some natural indices.

    Args:
        indices: the prefix first.
        represented: one more token, without a place on the grid, follows them.

    Raises:
        ConfigError: a tensor of unknown meaning; it might belong to the tokens.
    """
    unknown = [name for name, value in context.items() if _is_unknown(name, value)]
    if unknown:
        raise ConfigError(f"the blocks got {', '.join(unknown)}, which vitslim cannot sort along with the tokens")
    selected: dict[str, Any] = dict(context)
    if context.get("rope") is not None:
        selected["rope"] = _rope_at(context["rope"], indices[:, prefix:] - prefix, represented)
    for name in _PAIRS:
        if context.get(name) is not None:
            selected[name] = pairs_at(context[name], indices, represented=represented)
    if context.get("is_causal"):
        earlier = indices[:, None, :, None] >= indices[:, None, None, :]
        mask = F.pad(earlier, (0, 1, 0, 1), value=True) if represented else earlier
        selected.update(is_causal=False, attn_mask=mask)
    return selected


def pairs_at(pairs: Tensor, indices: Int[Tensor, "b m"], *, represented: bool = False) -> Tensor:
    """Rows and columns of some tokens, from a mask or bias that broadcasts to (b, h, n, n)."""
    picked = take_pairs(pairs.reshape((1,) * (4 - pairs.ndim) + pairs.shape), indices)
    if not represented:
        return picked
    # The representative is seen by all and sees all.
    rows = int(picked.shape[2] > 1)
    return F.pad(picked, (0, 1, 0, rows), value=True if picked.dtype == torch.bool else 0.0)


def _rope_at(
    rope: Shaped[Tensor, "*shared p f"], patches: Int[Tensor, "b k"], represented: bool
) -> Shaped[Tensor, "b h m f"]:
    """(sin, cos) of some patches, from one table, one per head or one per image."""
    table = rope.reshape((1,) * (4 - rope.ndim) + rope.shape)
    if table.shape[0] == 1:
        angles = take_shared(table[0], patches)
    else:
        angles = table.take_along_dim(patches[:, None, :, None], dim=2)
    if not represented:
        return angles
    sine, cosine = angles[:, :, :1].chunk(2, dim=-1)
    unturned = torch.cat([torch.zeros_like(sine), torch.ones_like(cosine)], dim=-1)
    return torch.cat([angles, unturned], dim=2)


def _together(active: Tensor, inactive: Tensor | None) -> Tensor:
    return active if inactive is None else torch.cat([active, inactive], dim=1)


def weighted_mean(rows: Float[Tensor, "b w d"], shares: Float[Tensor, "b w"]) -> Float[Tensor, "b 1 d"]:
    """One token for several, by shares that sum to 1."""
    # r = Σ_j share_j x_j; no matrix product, which autocast would round
    return (shares.to(rows.dtype).unsqueeze(2) * rows).sum(dim=1, keepdim=True)


def _is_unknown(name: str, value: Any) -> bool:
    return isinstance(value, Tensor) and name != "rope" and name not in _PAIRS
