"""What one forward carries from step to step beside the tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from vitslim.models import Context, TokenLayout


@runtime_checkable
class TokenState(Protocol):
    """What the token axis remembers while some tokens are inactive: who is active, in which order, what they hold."""

    def restore(self, tokens: Tensor) -> Tensor:
        """All n tokens in their natural order, from the active ones and the inactive ones."""
        ...

    def select_context(self, context: Context) -> Context:
        """The block's keyword arguments (rotary positions, masks) for the active tokens."""
        ...

    def active_indices(self) -> Tensor | None:
        """The natural index (b, m) of each active token that has one; ``None`` when all are in natural order."""
        ...

    def select_pairs(self, pairs: Tensor) -> Tensor:
        """Rows and columns of the active tokens, from a bias that broadcasts to (b, h, n, n)."""
        ...

    def key_bias(self) -> Tensor | None:
        """What is added to the scores of each active token as a key, (b, 1, 1, m); ``None`` for nothing."""
        ...

    def whole_z(self, z: Tensor) -> Tensor:
        """ẑ of all n tokens in their natural order, from that of the active ones."""
        ...

    def part_z(self, whole: Tensor) -> tuple[Tensor, TokenState]:
        """ẑ of the active tokens, from that of all n in their natural order, and the state that knows the rest."""
        ...


@dataclass(frozen=True)
class Stream:
    """The value that travels along one forward; a step returns a new one and never changes it.

    Args:
        layout: prefix and patch grid of this forward's images, all tokens counted.
        context: keyword arguments that timm gave the block of the present step.
        z: output ẑ of the attention branch of the step before, for the active tokens.
        wants_class_attention: the token axis of the present step asks the attention for A^[CLS].
        wants_keys: the token axis of the present step asks for the keys of its attention.
        keys: those keys, after q/k-norm and rotary positions, (b, h, n, e); gone after the step.
        class_attention: A^[CLS] of the latest step that was asked, shape (b, h, n) over its active tokens.
        token_state: memory of the token axis; ``None`` while all tokens are active in natural order.
    """

    layout: TokenLayout
    context: Context = field(default_factory=dict)
    z: Tensor | None = None
    wants_class_attention: bool = False
    wants_keys: bool = False
    keys: Tensor | None = None
    class_attention: Tensor | None = None
    token_state: TokenState | None = None
