"""Evo-ViT: half of the patches are inactive in most blocks, chosen by the attention that the class token pays them.

Source: Xu et al., "Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer", AAAI 2022, arXiv 2108.01390.
The paper's letters: g is the global class attention of each patch, α its rate of update, *placeholders* are the patches
that are inactive, the *representative token* stands for them.

Tokens are carried in sorted order: one sort and one gather per selection; the natural order comes back once, at the
end, or where a caller looks at a block's output. Attention stays fused; the class token's row of it is computed apart,
and only in steps whose row decides a later selection.

The authors' DeiT release leaves the placeholders as they are; ``slow_fast`` is the paper's update, which they released
for LeViT only. Two differences from that code: there the stage-wise form keeps one patch less, to make room for the
representative (``align`` decides that here); and what the placeholders follow is the representative's gain over a whole
stage, which is the sum of its branch outputs up to rounding.

Not here: the authors' second, training-only head on the class token. It belongs to a recipe, not to a model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.kernels.token_selection import argsort_by_score
from vitslim.methods.base import Evidence, MethodConfig, register_method
from vitslim.methods.layers import parse_layers, parse_numbers, refuse_ruled_tokens, steps_of
from vitslim.plans import ModelPlan, Place, StepPlan, TokenChoice, TokenCount
from vitslim.trunk import BoundBlock, SortedTokens, Stream, TokenRule

Schedule = Literal["stage", "layer"]
Placeholders = Literal["frozen", "slow_fast"]
Score = Literal["class", "mean_query"]

# In half precision all the small entries of a class row may have become 0.
_TINY = 1e-12


class EvoViTConfig(MethodConfig):
    """Options of Evo-ViT; the defaults are those of the authors' DeiT models. No option reads an analysis."""

    stages: tuple[int, ...] | None = Field(default=None, examples=["4,8"])
    """Blocks, counted from 0, at whose entry patches are chosen; the first is where reduction starts, and a stage lasts
    until the next. By default a third and two thirds of the depth: 4 and 8 of 12."""
    schedule: Schedule = "stage"
    """``stage`` chooses at the entry of each stage, ``layer`` anew at every block from the first stage on. The authors
    train 200 of 300 epochs with the second and end with the first: that is ``stage`` here, with ``early_tokens`` in the
    settings of the training."""
    keep: float | tuple[float, ...] = Field(default=0.5, examples=["0.7"])
    """Share of the patches that take part, 0..1: one for all, one per stage, or one per block of the model. In the
    stage schedule a stage goes by its first block."""
    alpha: float | tuple[float, ...] = Field(default=0.5, examples=["0.4"])
    """Rate at which g follows a block's class row, 0..1: one for all blocks from the first stage on (1 before it), or
    one per block."""
    placeholders: Placeholders = "frozen"
    """What becomes of the others: ``frozen``, they stay as they are, or ``slow_fast``, they follow a representative
    token that takes part for them."""
    align: int = Field(default=1, ge=1, le=256, examples=["8"])
    """The number of tokens that take part is rounded to the nearest multiple of this; 1 is the paper's."""
    score: Score | None = None
    """What ranks the patches, by default what the model has. ``class``: the class token's attention row.
    ``mean_query``, where there is no class token: the row of the mean patch query."""
    readout: Literal["model", "mean"] = "model"
    """``model`` leaves the classifier as it is; ``mean`` is the paper's, the mean of all patches, normalised."""

    @field_validator("stages", mode="before")
    @classmethod
    def _read_stages(cls, value: Any) -> tuple[int, ...] | None:
        stages = None if value is None else parse_layers(value)
        if stages == ():
            raise ValueError("no stage; name at least one block, or give keep=1 to keep all patches")
        return stages

    @field_validator("keep", "alpha", mode="before")
    @classmethod
    def _read_shares(cls, value: Any) -> Any:
        # A single number is meant for all stages, a list of one for one stage.
        return parse_numbers(value) if isinstance(value, str) and "," in value else value

    @field_validator("keep", "alpha")
    @classmethod
    def _shares(cls, value: float | tuple[float, ...]) -> float | tuple[float, ...]:
        shares = value if isinstance(value, tuple) else (value,)
        if not shares or any(not 0.0 < share <= 1.0 for share in shares):
            raise ValueError("shares and rates lie above 0 and are at most 1")
        return value


class Evolve(TokenChoice):
    """The patches with the largest g are active, and for the others perhaps a representative."""

    picks: ClassVar[bool] = True
    fixed_size: ClassVar[str] = "how many patches take part has to be a constant"

    kind: Literal["evolve"] = "evolve"
    keep: float = Field(default=1.0, gt=0.0, le=1.0)
    """Share of the patches that take part; at 1 everybody does."""
    is_entry: bool = False
    """Choose anew before the step."""
    alpha: float = Field(default=1.0, gt=0.0, le=1.0)
    """Rate at which g follows this step's class row."""
    placeholders: Placeholders = "frozen"
    align: int = Field(default=1, ge=1, le=256)
    score: Score = "class"
    early_form: tuple[float, bool] | None = None
    """``keep`` and ``is_entry`` early in training, where they differ."""

    @property
    def selects(self) -> bool:
        return self.is_entry

    @property
    def reduces(self) -> bool:
        return self.keep < 1.0

    def describe(self) -> str:
        if not self.reduces:
            return "all"
        chosen = f", chosen by {self.score.replace('_', ' ')} attention" if self.is_entry else ""
        return f"kept {100 * self.keep:g} %{chosen}, others {'frozen' if self.placeholders == 'frozen' else 'follow'}"

    def early(self) -> Evolve:
        if self.early_form is None:
            return self
        keep, is_entry = self.early_form
        return self.model_copy(update={"keep": keep, "is_entry": is_entry, "early_form": None})

    def rows_read(self, steps: Sequence[StepPlan], index: int) -> Iterator[int]:
        if not self.is_entry:
            return
        for before in range(index - 1, -1, -1):
            tokens = steps[before].tokens
            if not steps[before].attention.attends or not isinstance(tokens, Evolve):
                continue
            yield before
            # With α = 1 while all take part, nothing is left of an older g.
            if tokens.alpha == 1.0 and not tokens.reduces:
                return

    def kept(self, patches: int, prefix: int) -> int:
        """How many of so many patches are active."""
        return kept_patches(patches, self.keep, others=prefix + self.extra, align=self.align)

    @property
    def extra(self) -> int:
        """How many tokens stand for the inactive patches."""
        return int(self.placeholders == "slow_fast")

    def enter(self, count: TokenCount, at: Place) -> TokenCount:
        patches = at.plan.patches
        kept = self.kept(patches, at.plan.model.prefix)
        if kept == patches:
            return replace(count, patches=patches, extra=0)
        return TokenCount(kept, self.extra, is_sorted=True) if self.is_entry else count

    def errors(self, at: Place) -> list[str]:
        model, count, errors = at.plan.model, at.before, list[str]()
        if self.score != model.row_score:
            has = "has no" if self.score == "class" else "has a"
            errors.append(
                f"score={self.score!r}: this {model.family} {has} class token; use {at.plan.model.row_score!r}"
            )
        kept = self.kept(at.plan.patches, model.prefix)
        if kept < at.plan.patches and not self.is_entry and (count.patches, count.extra) != (kept, self.extra):
            errors.append(
                f"{kept} patches should be active, but {count.patches} are before it, and it does not choose; "
                "give it the share of the step before, or let it choose"
            )
        if self.is_entry and not any(True for _ in self.rows_read(at.plan.steps, at.index)):
            errors.append("no step before it attends and keeps up g, by which it could choose; let one do so")
        return errors


class Evolution(TokenRule):
    """Who is active in one step, by its ``Evolve``."""

    choice: Evolve

    def enter(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        state, layout = _state_of(stream), stream.layout
        kept = self.choice.kept(layout.patches, layout.prefix)
        if kept < layout.patches:
            return self._selected(state, tokens, stream, kept) if self.choice.is_entry else (tokens, stream)
        if state.inactive is None:
            return tokens, stream
        tokens, z, state = state.join(tokens, stream.z)
        return tokens, replace(stream, z=z, token_state=state)

    def between(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        if not stream.wants_class_attention:
            return tokens, stream
        if stream.class_attention is None:
            raise ConfigError("this step's attention gives no class row, by which Evo-ViT would choose the patches")
        state = _followed(_state_of(stream), stream.class_attention, self.choice.alpha)
        return tokens, replace(stream, token_state=state)

    def _selected(self, state: SortedTokens, tokens: Tensor, stream: Stream, kept: int) -> tuple[Tensor, Stream]:
        if state.scores is None:
            raise ConfigError("no step before this one gave a class row, by which Evo-ViT would choose the patches")
        falling, indices = argsort_by_score(state.scores, state.prefix)
        inactive = falling[:, kept:]
        # share_j = g_j / Σ g over the placeholders
        shares = inactive / inactive.sum(dim=1, keepdim=True).clamp_min(_TINY) if self.choice.extra else None
        return replace(state, scores=falling).select(tokens, stream, indices, state.prefix + kept, shares)


def kept_patches(patches: int, keep: float, *, others: int = 0, align: int = 1) -> int:
    """How many patches take part: ⌊patches · keep⌋, at least one.

    Args:
        patches: how many there are.
        keep: share, 0..1; at 1 all, whatever the alignment.
        others: tokens that take part beside them (prefix, representative).
        align: the sum of both is rounded to the nearest multiple of this, a half up.
    """
    if keep == 1.0:
        return patches
    # The small term keeps 0.29 · 100 from being 28.
    kept = math.floor(patches * keep + 1e-9)
    kept = align * ((kept + others + align // 2) // align) - others
    return min(max(kept, 1), patches)


def _followed(state: SortedTokens, row: Float[Tensor, "b h m"], alpha: float) -> SortedTokens:
    """G after one more class row over the active tokens, summed over heads; that of placeholders stays."""
    # Behind the prefix come the patches, and after them perhaps the representative, which has no g.
    patches = row.shape[2] - state.prefix - int(state.shares is not None)
    fresh = row[:, :, state.prefix : state.prefix + patches].float().sum(dim=1)
    if state.scores is None:
        return replace(state, scores=fresh)
    # g_l = (1 - α_l) g_{l-1} + α_l · row_l
    mixed = fresh if alpha == 1.0 else (1.0 - alpha) * state.scores[:, :patches] + alpha * fresh
    return replace(state, scores=torch.cat([mixed, state.scores[:, patches:]], dim=1))


def _state_of(stream: Stream) -> SortedTokens:
    state = stream.token_state
    return state if isinstance(state, SortedTokens) else SortedTokens(prefix=stream.layout.prefix)


@register_method(
    "evo_vit",
    EvoViTConfig,
    source="Xu et al., AAAI 2022, arXiv 2108.01390",
    modules={Evolve: lambda choice, site: Evolution(choice)},
    neutral={"keep": 1.0},
    forms={"slow-fast": {"placeholders": "slow_fast"}},
    strengths=lambda plan: [{"keep": keep} for keep in (0.7, 0.5, 0.35)],
)
def evo_vit(plan: ModelPlan, options: EvoViTConfig, evidence: Evidence | None) -> ModelPlan:
    """The plan with a rule for the tokens of every step."""
    refuse_ruled_tokens("evo_vit", plan)
    if options.score not in (None, plan.model.row_score):
        has = "has a" if plan.model.has_class_token else "has no"
        raise ConfigError(
            f"evo_vit.score={options.score!r}: this {plan.model.family} {has} class token; "
            f"its score is {plan.model.row_score!r}"
        )
    stages = _stages(options.stages, plan)
    keep, alpha = _keep(options.keep, stages, plan), _alpha(options.alpha, stages, plan)
    if options.readout == "mean":
        plan = plan.model_copy(update={"readout": "mean"})
    if min(keep) == 1.0:
        return plan
    rules: dict[int, StepPlan] = {}
    for index, step in enumerate(plan.steps):
        late, early = (_form(schedule, index, stages, keep) for schedule in (options.schedule, "layer"))
        rule = Evolve(
            keep=late[0],
            is_entry=late[1],
            alpha=alpha[index],
            placeholders=options.placeholders,
            align=options.align,
            score=plan.model.row_score,
            early_form=None if early == late else early,
        )
        rules[index] = step.but(tokens=rule)
    return plan.with_steps(rules)


def _form(schedule: str, index: int, stages: tuple[int, ...], keep: tuple[float, ...]) -> tuple[float, bool]:
    """The share of one step, and whether it chooses."""
    if schedule == "layer":
        return keep[index], index >= stages[0] and keep[index] < 1.0
    entry = max((stage for stage in stages if stage <= index), default=0)
    return keep[entry], index in stages and keep[entry] < 1.0


def _stages(blocks: tuple[int, ...] | None, plan: ModelPlan) -> tuple[int, ...]:
    """The steps at whose entry patches are chosen."""
    depth = plan.depth
    if depth < 2:
        raise ConfigError(f"evo_vit: {depth} block; the first must attend before patches can be chosen")
    if blocks is None:
        return tuple(sorted({max(1, depth // 3), max(1, 2 * depth // 3)}))
    if not all(plan.steps[0].block < block < plan.model.depth for block in blocks):
        raise ConfigError(
            f"evo_vit.stages={blocks}: choose from {plan.steps[0].block + 1}..{plan.model.depth - 1}; "
            f"block {plan.steps[0].block} has no attention before it to choose by"
        )
    steps = steps_of(plan, "evo_vit.stages", blocks)
    return tuple(index for index in steps if plan.steps[index].block != plan.steps[index - 1].block)


def _keep(keep: float | tuple[float, ...], stages: tuple[int, ...], plan: ModelPlan) -> tuple[float, ...]:
    """One share per step; 1 before the first stage."""
    if isinstance(keep, tuple) and len(keep) == plan.model.depth:
        early = next((step.block for step in plan.steps[: stages[0]] if keep[step.block] < 1.0), None)
        if early is not None:
            first = plan.steps[stages[0]].block
            named = tuple(plan.steps[stage].block for stage in stages)
            raise ConfigError(
                f"evo_vit.keep[{early}]={keep[early]}: reduction starts at block {first} (stages={named}); "
                "give 1 before it"
            )
        return tuple(keep[step.block] for step in plan.steps)
    per_stage = keep if isinstance(keep, tuple) else (keep,) * len(stages)
    if len(per_stage) != len(stages):
        named = tuple(plan.steps[stage].block for stage in stages)
        raise ConfigError(
            f"evo_vit.keep={keep}: {len(per_stage)} shares; wanted one, one per stage ({len(stages)}: {named}), "
            f"or one per block ({plan.model.depth})"
        )
    ends = (*stages[1:], plan.depth)
    shares = [1.0] * stages[0]
    for share, start, end in zip(per_stage, stages, ends, strict=True):
        shares += [share] * (end - start)
    return tuple(shares)


def _alpha(alpha: float | tuple[float, ...], stages: tuple[int, ...], plan: ModelPlan) -> tuple[float, ...]:
    if not isinstance(alpha, tuple):
        return (1.0,) * stages[0] + (alpha,) * (plan.depth - stages[0])
    if len(alpha) != plan.model.depth:
        raise ConfigError(
            f"evo_vit.alpha={alpha}: {len(alpha)} rates; wanted one, or one per block ({plan.model.depth})"
        )
    return tuple(alpha[step.block] for step in plan.steps)
