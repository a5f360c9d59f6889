"""Pruning: after some attentions only the patches that the class token attends to go on, with one token for the rest.

Source: Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations",
ICLR 2022, arXiv 2202.07800 (EViT). Between attention and MLP the patches with the largest a_j = mean over heads of the
class row stay, the others are fused into one token, their mean weighted by a_j. Where patches are pruned again, the
former fused token joins the new one with its own a_j.

Departure: in the paper pruned patches are gone. Here they come back at the end of the trunk as they were when they
left, since dense features and mean pooling read all patches; the fused token ends there.

The same choice before the attention and without the fused token is the token pruning of Sparsifiner (arXiv 2303.13755).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.kernels.token_selection import argsort_by_score
from vitslim.methods.base import Evidence, MethodConfig, register_method
from vitslim.methods.layers import parse_layers, refuse_ruled_tokens, steps_of
from vitslim.plans import ModelPlan, Place, StepPlan, TokenChoice, TokenCount, share_of
from vitslim.trunk import BoundBlock, Site, SortedTokens, Stream, TokenRule
from vitslim.trunk.tokens import weighted_mean

Score = Literal["class", "mean_query"]
Where = Literal["before", "between"]

_TINY = 1e-12  # in half precision all small entries of a class row may have become 0


class Prune(TokenChoice):
    """Keep the patches with the most attention from here on."""

    picks: ClassVar[bool] = True
    fixed_size: ClassVar[str] = "how many patches take part has to be a constant"

    kind: Literal["prune"] = "prune"
    keep: float = Field(gt=0.0, le=1.0)
    """Share of all patches that is active from here on."""
    where: Where = "between"
    """``between`` attention and MLP, by the row of this step's attention; ``before`` the step, by the step before's."""
    fuse: bool = True
    """One more token takes part for the pruned patches."""
    score: Score = "class"

    def describe(self) -> str:
        fused = ", the rest fused" if self.fuse else ""
        return f"kept {100 * self.keep:g} %, pruned by {self.score.replace('_', ' ')} attention{fused}"

    @property
    def selects(self) -> bool:
        return self.where == "before"

    def rows_read(self, steps: Sequence[StepPlan], index: int) -> Iterable[int]:
        return (index - 1 if self.selects else index,)

    def enter(self, count: TokenCount, at: Place) -> TokenCount:
        return self._pruned(count, at) if self.selects else count

    def between(self, count: TokenCount, at: Place) -> TokenCount:
        return count if self.selects else self._pruned(count, at)

    def errors(self, at: Place) -> list[str]:
        errors: list[str] = []
        kept, active, patches = share_of(at.plan.patches, self.keep), at.before.patches, at.plan.patches
        if kept > active:
            errors.append(
                f"keep={self.keep:g} is {kept} of {patches} patches, but {active} are left; they only become fewer"
            )
        own = at.plan.model.row_score
        if self.score != own:
            has = "a" if own == "class" else "no"
            errors.append(f"score={self.score!r}: this {at.plan.model.family} has {has} class token; use {own!r}")
        first = next(step.tokens for step in at.plan.steps if isinstance(step.tokens, Prune))
        if (first.where, first.fuse) != (self.where, self.fuse):
            errors.append("all prunings of a plan have the same where and fuse")
        return errors

    def _pruned(self, count: TokenCount, at: Place) -> TokenCount:
        kept = share_of(at.plan.patches, self.keep)
        return count if kept >= count.patches else TokenCount(kept, int(self.fuse), is_sorted=True)


class Pruning(TokenRule):
    """Who takes part after a ``Prune``.

    Args:
        z_is_read: the next step reads this step's attention output.
    """

    choice: Prune

    def __init__(self, choice: Prune, *, z_is_read: bool) -> None:
        super().__init__(choice)
        self.z_is_read = z_is_read

    def enter(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        return self._pruned(tokens, stream) if self.choice.where == "before" else (tokens, stream)

    def between(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        if self.choice.where == "before":
            return tokens, stream
        return self._pruned(tokens, stream if self.z_is_read else replace(stream, z=None))

    def _pruned(self, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        layout, row = stream.layout, stream.class_attention
        if row is None:
            raise ConfigError("the attention gave no class row, by which patches would be pruned")
        state = stream.token_state
        state = state if isinstance(state, SortedTokens) else SortedTokens(prefix=layout.prefix)
        patches = tokens.shape[1] - layout.prefix - int(state.shares is not None)
        kept = share_of(layout.patches, self.choice.keep)
        if kept >= patches:
            return tokens, stream
        # a_j; that of a former fused token stands at the end
        scores = row[:, :, layout.prefix :].float().mean(dim=1)
        falling, indices = argsort_by_score(scores[:, :patches], layout.prefix)
        # Those pruned before stay behind the others.
        gone = torch.arange(layout.prefix + patches, layout.tokens, device=indices.device).expand(indices.shape[0], -1)
        indices, active = torch.cat([indices, gone], dim=1), layout.prefix + kept
        if not self.choice.fuse:
            return state.select(tokens, stream, indices, active)
        weights = torch.cat([falling[:, kept:], scores[:, patches:]], dim=1)
        weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(_TINY)
        if state.shares is None:
            return replace(state, frozen=True).select(tokens, stream, indices, active, weights)
        shares = torch.cat([weights[:, :-1], weights[:, -1:] * state.shares], dim=1)
        chosen, stream = state.select(tokens, stream, indices, active, shares)
        # x_f ← Σ_j a_j x_j + a_f x_f over those pruned now and the former fused token, as they are now
        leaving = torch.cat([_inactive(stream)[:, : patches - kept], tokens[:, -1:]], dim=1)
        return torch.cat([chosen[:, :-1], weighted_mean(leaving, weights)], dim=1), stream


def _inactive(stream: Stream) -> Tensor:
    state = stream.token_state
    assert isinstance(state, SortedTokens) and state.inactive is not None  # noqa: PT018
    return state.inactive


class PruneConfig(MethodConfig):
    """Options of class-attention pruning; the defaults are the paper's. No option reads an analysis."""

    layers: tuple[int, ...] | None = Field(default=None, examples=["3,6,9"])
    """Blocks after whose attention patches are pruned, counted from 0; by default after each quarter of the depth: 3, 6
    and 9 of 12."""
    keep: float = Field(default=0.7, gt=0.0, le=1.0, examples=["0.5"])
    """Share of the patches left that each of these blocks keeps, 0..1; the paper goes from 0.5 to 0.9."""
    fuse: bool = True
    """Fuse the pruned patches into one token that takes part for them."""
    score: Score | None = None
    """What ranks the patches, by default what the model has. ``class``: the class token's attention row.
    ``mean_query``, where there is no class token: the row of the mean patch query."""

    @field_validator("layers", mode="before")
    @classmethod
    def _read_layers(cls, value: Any) -> Any:
        return None if value is None else parse_layers(value)


def _pruning(choice: Prune, site: Site) -> Pruning:
    following = site.place.plan.steps[site.place.index + 1 : site.place.index + 2]
    return Pruning(choice, z_is_read=any(step.attention.reads_z for step in following))


@register_method(
    "prune",
    PruneConfig,
    source="Liang et al., ICLR 2022, arXiv 2202.07800",
    modules={Prune: _pruning},
    neutral={"keep": 1.0},
    strengths=lambda plan: [{"keep": keep} for keep in (0.85, 0.7, 0.55, 0.4)],
    example={"layers": (1, 2), "keep": 0.7},
    forms={"without a fused token": {"layers": (1, 2), "keep": 0.7, "fuse": False}},
)
def prune(plan: ModelPlan, options: PruneConfig, evidence: Evidence | None) -> ModelPlan:
    """The plan with patches pruned in some steps, each time to ``keep`` of what is left."""
    if options.keep == 1.0:
        return plan
    refuse_ruled_tokens("prune", plan)
    blocks = options.layers
    if blocks is None:
        blocks = dict.fromkeys(plan.steps[plan.depth * quarter // 4].block for quarter in (1, 2, 3))
    score = options.score or plan.model.row_score
    return plan.with_steps(
        {
            index: plan.steps[index].but(tokens=Prune(keep=options.keep**power, fuse=options.fuse, score=score))
            for power, index in enumerate(steps_of(plan, "prune.layers", blocks), start=1)
        }
    )
