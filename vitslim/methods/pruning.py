"""Patches that leave after some blocks, by the attention that the class token pays them, and take part no more.

Source: the token pruning of Sparsifiner (arXiv 2303.13755), as in its authors' code, where pruned tokens are masked;
here they are not computed. What they were when they left comes back at the end of the trunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vitslim.errors import ConfigError
from vitslim.kernels.token_selection import ranked
from vitslim.models import TokenLayout
from vitslim.trunk import BoundBlock, Plan, SortedTokens, Step, Stream, TokenRule


class Pruning(TokenRule):
    """Who takes part in one step: the patches that all prunings before it have left.

    Args:
        keep: share of all patches that takes part.
        selects: prune at the entry, by the class row of the step before.
        score: the name of what ranks the patches.
    """

    chooses = True
    needs_one_size = "how many patches take part has to be a constant"

    def __init__(self, keep: float, *, selects: bool, score: str) -> None:
        super().__init__()
        self.keep = keep
        self.selects = selects
        self.reduces = keep < 1.0
        self.reads_row_before = selects
        self.score = score

    def settle_(self, index: int, steps: Sequence[nn.Module]) -> None:
        later = cast("Sequence[Step]", steps[index + 1 : index + 2])
        self.wants_class_attention = any(isinstance(step.tokens, Pruning) and step.tokens.selects for step in later)

    def enter(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        if not self.selects:
            return tokens, stream
        layout, row = stream.layout, stream.class_attention
        if row is None:
            raise ConfigError("the step before gave no class row, by which patches would be pruned")
        state = stream.token_state
        state = state if isinstance(state, SortedTokens) else SortedTokens(prefix=layout.prefix)
        # The head-mean of A^[CLS] ranks the active patches; those pruned before stay behind them.
        _, places = ranked(row[:, :, layout.prefix :].float().mean(dim=1), layout.prefix)
        pruned = torch.arange(tokens.shape[1], layout.tokens, device=places.device).expand(places.shape[0], -1)
        active = layout.prefix + share_of(layout.patches, self.keep)
        return state.select(tokens, stream, torch.cat([places, pruned], dim=1), active)

    def describe(self) -> str:
        return f"kept {100 * self.keep:g} %{self._manner()}" if self.reduces else "all"

    def patches_kept(self, layout: TokenLayout) -> int:
        return share_of(layout.patches, self.keep)

    def describe_for(self, layout: TokenLayout) -> str:
        kept = self.patches_kept(layout)
        return f"kept {kept} of {layout.patches}{self._manner()}" if self.reduces else "all"

    def _manner(self) -> str:
        return f", pruned by {self.score} attention" if self.selects else ""


def share_of(count: int, rate: float) -> int:
    """The smallest number that is at least a share of the count, without being fooled by rounding."""
    # 0.07 · 100 is 7.000000000000001, whose ceiling would be 8.
    return math.ceil(round(count * rate, 6))


def with_pruning(plan: Plan, layers: tuple[int, ...], keep: float) -> Plan:
    """The plan with patches pruned after these blocks, each time to ``keep`` of what is left."""
    score = "class" if plan.adapter.has_class_token else "mean query"
    rules = [
        Pruning(keep ** sum(layer < index for layer in layers), selects=index - 1 in layers, score=score)
        for index in range(plan.depth)
    ]
    return plan.with_steps({index: step.but(tokens=rules[index]) for index, step in enumerate(plan.steps)})


def faults_of_pruning(layers: tuple[int, ...], plan: Plan) -> list[str]:
    """Why patches cannot be pruned after these blocks; empty where they can."""
    last = plan.depth - 2
    faults = [f"no block comes after {layer}; choose from 0..{last}" for layer in layers if not 0 <= layer <= last]
    for layer in set(layers) & set(range(plan.depth)):
        if not plan.steps[layer].mixing.uses_attention:
            found = plan.steps[layer].mixing.describe()
            faults.append(f"block {layer} has no attention to prune by ({found})")
    busy = plan.ruled_step
    if busy is not None:
        taken = plan.steps[busy].tokens.describe_for(plan.layout)
        faults.append(
            f"step {busy} already has a rule for its tokens ({taken}); one of them can rule, leave token_keep_rate at 1"
        )
    return faults
