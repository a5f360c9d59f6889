"""Merging: between attention and MLP the patches that are most alike become one token, their mean.

Source: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461; written from the paper. The
patches alternate between two sets A and B. Each of A draws an edge to the one of B whose key, the mean over heads, has
the largest cosine with its own; the top r edges merge their ends, weighted by how many patches each stands for.
Later attention adds the logarithm of that number to the scores of a key (*proportional attention*).

At the end of the trunk every patch gets the token of its group back, so dense features keep their grid, and the mean of
all patches is the mean of the groups weighted by their sizes. No prefix token is merged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.methods.base import Evidence, MethodConfig, register_method
from vitslim.methods.layers import parse_layers, refuse_ruled_tokens, steps_of
from vitslim.plans import Cost, ModelPlan, Place, TokenChoice, TokenCount, share_of
from vitslim.trunk import BoundBlock, MergedTokens, Stream, TokenRule


class Merge(TokenChoice):
    """Join the patches that are most alike, until a share of them is left."""

    picks: ClassVar[bool] = True
    fixed_size: ClassVar[str] = "how many patches are merged has to be a constant"

    kind: Literal["merge"] = "merge"
    keep: float = Field(gt=0.0, le=1.0)
    """Share of all patches that is active after this step."""

    def describe(self) -> str:
        return f"kept {100 * self.keep:g} %, the most similar merged"

    @property
    def reads_keys(self) -> bool:
        return True

    def between(self, count: TokenCount, at: Place) -> TokenCount:
        kept = share_of(at.plan.patches, self.keep)
        return count if kept >= count.patches else TokenCount(kept, is_merged=True)

    def errors(self, at: Place) -> list[str]:
        errors: list[str] = []
        kept, active = share_of(at.plan.patches, self.keep), at.before.patches
        attention = at.step.attention
        if kept > active:
            errors.append(
                f"keep={self.keep:g} is {kept} of {at.plan.patches} patches, but {active} are left; they only become "
                "fewer"
            )
        elif active - kept > -(-active // 2):
            errors.append(
                f"keep={self.keep:g} merges {active - kept} of {active} patches; at most half of them can be merged in "
                "one step"
            )
        if not attention.attends or attention.picks or attention.whole_grid:
            errors.append(f"patches are merged by the keys of dense attention, here it is {attention.describe()}")
        return errors

    def cost(self, at: Place) -> Cost:
        active, kept = at.in_attention.patches, at.in_mlp.patches
        if kept >= active:
            return Cost()
        first, second, merged = -(-active // 2), active // 2, active - kept
        # cosines of A and B, and the means by a matrix of shares
        macs = first * second * at.block.head_width + second * merged * at.plan.channels
        return Cost(macs=macs, activations=second * max(first, at.plan.channels))


class Merging(TokenRule):
    """Who takes part after a ``Merge``."""

    choice: Merge

    def between(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        layout = stream.layout
        count = tokens.shape[1] - layout.prefix - share_of(layout.patches, self.choice.keep)
        if count <= 0:
            return tokens, stream
        if stream.keys is None:
            raise ConfigError("the attention gave no keys, by which patches would be merged")
        state = stream.token_state
        state = state if isinstance(state, MergedTokens) else MergedTokens.single(tokens, layout.prefix)
        keys = stream.keys[:, :, layout.prefix :].float().mean(dim=1)
        tokens, state = state.merge(tokens, keys, count)
        return tokens, replace(stream, token_state=state, z=None)


class MergeConfig(MethodConfig):
    """Options of token merging. No option reads an analysis."""

    layers: tuple[int, ...] | None = Field(default=None, examples=["2-11"])
    """Blocks in which patches are merged, counted from 0; by default all, as in the paper."""
    keep: float = Field(default=0.5, gt=0.0, le=1.0, examples=["0.7"])
    """Share of the patches left behind the last of these blocks, 0..1; each merges as many."""
    r: int | None = Field(default=None, ge=1, examples=["8"])
    """The same as the number of patches that each block merges; takes the place of ``keep``."""

    @field_validator("layers", mode="before")
    @classmethod
    def _read_layers(cls, value: Any) -> Any:
        return None if value is None else parse_layers(value)


@register_method(
    "merge",
    MergeConfig,
    source="Bolya et al., ICLR 2023, arXiv 2210.09461",
    modules={Merge: lambda choice, site: Merging(choice)},
    neutral={"keep": 1.0},
    example={"layers": (1, 2), "keep": 0.5},
    strengths=lambda plan: [{"keep": keep} for keep in (0.7, 0.5, 0.35, 0.25)],
)
def merge(plan: ModelPlan, options: MergeConfig, evidence: Evidence | None) -> ModelPlan:
    """The plan with the same number of patches merged in each of some steps."""
    if options.keep == 1.0 and options.r is None:
        return plan
    refuse_ruled_tokens("merge", plan)
    blocks = dict.fromkeys(step.block for step in plan.steps) if options.layers is None else options.layers
    steps = steps_of(plan, "merge.layers", blocks)
    if options.r is None:
        gone = (1.0 - options.keep) / max(1, len(steps))
    elif options.r * len(steps) < plan.patches:
        gone = options.r / plan.patches
    else:
        raise ConfigError(
            f"merge.r={options.r}: {len(steps)} blocks would merge {options.r * len(steps)} of {plan.patches} patches; "
            f"give at most {(plan.patches - 1) // len(steps)}"
        )
    return plan.with_steps(
        {
            index: plan.steps[index].but(tokens=Merge(keep=round(1.0 - gone * number, 9)))
            for number, index in enumerate(steps, start=1)
        }
    )
