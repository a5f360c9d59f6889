"""The token state in which the first tokens of an order take part and the others wait."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.kernels.tokens import inverse, take, take_pairs, take_shared
from vitslim.models import Context

_MASKS = ("attn_mask", "shared_rel_pos_bias")


@dataclass(frozen=True)
class SortedTokens:
    """All tokens in one order: the prefix, the patches that take part, the patches that wait.

    With ``shares`` one more token takes part, at the very end: the representative of the waiting ones, their weighted
    mean. The waiting ones follow it: what it gains while they wait is added to each of them. It has no place on the
    patch grid, hence no rotary angle and no bias.

    Args:
        prefix: tokens at the front that are no patches; they are always active.
        order: for each place the token that stands there, by its natural index; ``None`` is the natural order.
        waiting: the tokens at the last places; ``None`` when all take part.
        waiting_z: ẑ of the waiting tokens, where a later step will ask for it.
        shares: weight of each waiting token in the representative; the rows sum to 1.
    """

    prefix: int
    order: Int[Tensor, "b n"] | None = None
    waiting: Float[Tensor, "b w d"] | None = None
    waiting_z: Float[Tensor, "b w d"] | None = None
    shares: Float[Tensor, "b w"] | None = None

    @property
    def waiting_count(self) -> int:
        return 0 if self.waiting is None else self.waiting.shape[1]

    def restore(self, tokens: Tensor) -> Tensor:
        """All n tokens in their natural order, from the active ones."""
        return self._natural(self.together(tokens))

    def together(self, tokens: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        """All n tokens in this order, from the active ones."""
        if self.waiting is None or self.shares is None:
            return self._joined(tokens, self.waiting)
        # x_j ← x_j + (what r gained in all branches since the waiting began)
        gained = tokens[:, -1:] - _mean(self.waiting, self.shares)
        return self._joined(tokens, self.waiting + gained)

    def split(
        self, tokens: Float[Tensor, "b n d"], active: int, shares: Float[Tensor, "b w"] | None = None
    ) -> tuple[Tensor, Self]:
        """The first ``active`` tokens of this order take part from now on; all n come in, in this order.

        Args:
            shares: if given, a representative takes part for those that wait.
        """
        if active >= tokens.shape[1]:
            return tokens, replace(self, waiting=None, waiting_z=None, shares=None)
        state = replace(self, waiting=tokens[:, active:], waiting_z=None, shares=shares)
        return state._represented(tokens[:, :active], tokens[:, active:]), state

    def select_context(self, context: Context) -> Context:
        """The block's keyword arguments (rotary angles, masks) for the active tokens.

        Raises:
            ConfigError: a tensor of unknown meaning; it might belong to the tokens.
        """
        if self.order is None:
            return context
        unknown = [name for name, value in context.items() if _is_foreign(name, value)]
        if unknown:
            raise ConfigError(f"the blocks got {', '.join(unknown)}, which vitslim cannot sort along with the tokens")
        selected: dict[str, Any] = dict(context)
        if context.get("rope") is not None:
            selected["rope"] = self._select_rope(context["rope"])
        for name in _MASKS:
            if context.get(name) is not None:
                selected[name] = self.select_pairs(context[name])
        if context.get("is_causal"):
            selected.update(is_causal=False, attn_mask=self._causal_mask())
        return selected

    def select_pairs(self, pairs: Tensor) -> Tensor:
        """Rows and columns of the active tokens from a mask or bias that broadcasts to (b, h, n, n)."""
        if self.order is None:
            return pairs
        picked = take_pairs(pairs.reshape((1,) * (4 - pairs.ndim) + pairs.shape), self._active_places())
        if self.shares is None:
            return picked
        # Seen by all, sees all, with no bias of its own.
        rows = int(picked.shape[2] > 1)
        return F.pad(picked, (0, 1, 0, rows), value=True if picked.dtype == torch.bool else 0.0)

    def whole_z(self, z: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        """ẑ of all n tokens in natural order, from that of the active ones.

        Raises:
            ConfigError: ẑ of the waiting tokens is not known.
        """
        return self._natural(self.together_z(z))

    def together_z(self, z: Float[Tensor, "b m d"]) -> Float[Tensor, "b n d"]:
        """ẑ of all n tokens in this order."""
        if self.waiting is not None and self.waiting_z is None:
            raise ConfigError("a step reuses the attention output of tokens that took no part in the step before")
        return self._joined(z, self.waiting_z)

    def split_z(self, z: Float[Tensor, "b n d"]) -> tuple[Tensor, Self]:
        """ẑ of the active tokens from that of all in this order, which is remembered for those that wait."""
        if self.waiting is None:
            return z, self
        active = z.shape[1] - self.waiting_count
        waiting_z = z[:, active:]
        return self._represented(z[:, :active], waiting_z), replace(self, waiting_z=waiting_z)

    def sorted(self, rows: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Rows of all n tokens, from natural order to this order."""
        return rows if self.order is None else take(rows, self.order)

    def _natural(self, rows: Tensor) -> Tensor:
        return rows if self.order is None else take(rows, inverse(self.order))

    def _joined(self, active: Tensor, waiting: Tensor | None) -> Tensor:
        if waiting is None:
            return active
        return torch.cat([active if self.shares is None else active[:, :-1], waiting], dim=1)

    def _represented(self, active: Tensor, waiting: Tensor) -> Tensor:
        return active if self.shares is None else torch.cat([active, _mean(waiting, self.shares)], dim=1)

    def _active_places(self) -> Tensor:
        assert self.order is not None
        return self.order[:, : self.order.shape[1] - self.waiting_count]

    def _select_rope(self, rope: Float[Tensor, "*shared p f"]) -> Float[Tensor, "b h k f"]:
        """Rotary angles (sin, cos) of the active patches: of one table, of one per head, or of one per image."""
        patches = self._active_places()[:, self.prefix :] - self.prefix
        table = rope.reshape((1,) * (4 - rope.ndim) + rope.shape)
        if table.shape[0] == 1:
            angles = take_shared(table[0], patches)
        else:
            angles = table.take_along_dim(patches[:, None, :, None], dim=2)
        if self.shares is None:
            return angles
        sine, cosine = angles[:, :, :1].chunk(2, dim=-1)
        unturned = torch.cat([torch.zeros_like(sine), torch.ones_like(cosine)], dim=-1)
        return torch.cat([angles, unturned], dim=2)

    def _causal_mask(self) -> Tensor:
        places = self._active_places()[:, None]
        seen = places.unsqueeze(3) >= places.unsqueeze(2)
        return seen if self.shares is None else F.pad(seen, (0, 1, 0, 1), value=True)


def _mean(rows: Tensor, shares: Tensor) -> Tensor:
    # r = Σ_j share_j x_j
    return (shares.to(rows.dtype).unsqueeze(1) @ rows).to(rows.dtype)


def _is_foreign(name: str, value: Any) -> bool:
    return isinstance(value, Tensor) and name != "rope" and name not in _MASKS
