"""Patches that leave after some blocks, by the attention that the class token pays them, and take part no more.

Source: the token pruning of Sparsifiner (arXiv 2303.13755), as in its authors' code, where pruned tokens are masked;
here they are not computed. What they were when they left comes back at the end of the trunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.kernels.token_selection import ranked
from vitslim.plans import AllTokens, Place, StepPlan, TokenChoice, TokenCount, register_choice
from vitslim.trunk import BoundBlock, SortedTokens, Stream, TokenRule, register_realiser


class Prune(TokenChoice):
    """The patches that all prunings before it have left."""

    picks: ClassVar[bool] = True
    fixed_size: ClassVar[str] = "how many patches take part has to be a constant"

    kind: Literal["prune"] = "prune"
    keep: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of all patches that is active from here on."""
    selects: bool = False
    """Prune here, by the class row of the step before."""
    where: Literal["before"] = "before"
    fuse: Literal[False] = False
    score: Literal["class", "mean_query"] = "class"

    @property
    def reduces(self) -> bool:
        return self.keep < 1.0

    def describe(self) -> str:
        chosen = f", pruned by {self.score.replace('_', ' ')} attention" if self.selects else ""
        return f"kept {100 * self.keep:g} %{chosen}" if self.reduces else "all"

    def rows_read(self, steps: Sequence[StepPlan], index: int) -> list[int]:
        return [index - 1] if self.selects else []

    def enter(self, count: TokenCount, at: Place) -> TokenCount:
        return TokenCount(share_of(at.plan.patches, self.keep), is_sorted=True) if self.selects else count

    def errors(self, at: Place) -> list[str]:
        kept, before = share_of(at.plan.patches, self.keep), at.before.patches
        errors: list[str] = []
        others = [step.tokens for step in at.plan.steps if not isinstance(step.tokens, AllTokens | Prune)]
        if others:
            errors.append(
                f"other steps choose their tokens in another way ({others[0].describe()}); one of them can rule"
            )
        if kept > before or (not self.selects and kept != before):
            errors.append(f"keeps {kept} patches, but {before} are active before it; pruned patches do not come back")
        return errors


class Pruning(TokenRule):
    """Who is active in one step, by its ``Prune``."""

    choice: Prune

    def enter(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        if not self.choice.selects:
            return tokens, stream
        layout, row = stream.layout, stream.class_attention
        if row is None:
            raise ConfigError("the step before gave no class row, by which patches would be pruned")
        state = stream.token_state
        state = state if isinstance(state, SortedTokens) else SortedTokens(prefix=layout.prefix)
        # The head-mean of A^[CLS] ranks the active patches; those pruned before stay behind them.
        _, places = ranked(row[:, :, layout.prefix :].float().mean(dim=1), layout.prefix)
        pruned = torch.arange(tokens.shape[1], layout.tokens, device=places.device).expand(places.shape[0], -1)
        active = layout.prefix + share_of(layout.patches, self.choice.keep)
        return state.select(tokens, stream, torch.cat([places, pruned], dim=1), active)


def share_of(count: int, rate: float) -> int:
    """The smallest number that is at least a share of the count, without being fooled by rounding."""
    # 0.07 · 100 is 7.000000000000001, whose ceiling would be 8.
    return math.ceil(round(count * rate, 6))


register_choice(Prune)
register_realiser(Prune, lambda choice, site: Pruning(choice))
