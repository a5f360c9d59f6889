"""Evo-ViT: half of the patches rest in most blocks, chosen by the attention that the class token pays them.

Source: Xu et al., "Evo-ViT: Slow-Fast Token Evolution for Dynamic Vision Transformer", AAAI 2022, arXiv 2108.01390.
The paper's letters: g is the global class attention of each patch, α its rate of update, *placeholders* are the patches
that rest, the *representative token* stands for them.

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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor, nn

from vitslim.errors import ConfigError
from vitslim.kernels.token_selection import ranked
from vitslim.methods.base import Evidence, Method, MethodConfig
from vitslim.methods.layers import parse_layers, parse_numbers
from vitslim.models import TokenLayout
from vitslim.models.readout import read_patch_mean_
from vitslim.trunk import (
    BoundBlock,
    Conversion,
    Plan,
    SortedTokens,
    Step,
    Stream,
    TokenRule,
    check_reuse,
    settle_,
    trunk_of,
)

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
    """What becomes of the others: ``frozen``, they wait as they are, or ``slow_fast``, they follow a representative
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


@dataclass(frozen=True)
class Choice:
    """What a schedule asks of one step.

    Args:
        keep: share of the patches that take part; at 1 everybody does.
        selects: choose anew at the entry.
    """

    keep: float
    selects: bool


class Evolution(TokenRule):
    """Who takes part in one step: the patches with the largest g, and for the others perhaps a representative.

    Args:
        choice: how many patches, and whether they are chosen here.
        alpha: rate at which g follows this step's class row.
        placeholders: what becomes of the others.
        align: multiple that the number of active tokens is rounded to.
        score: the name of what ranks them.
        early: the choice early in training; ``choice`` by default.
    """

    keep: float
    chooses = True
    needs_one_size = "how many patches take part has to be a constant"

    def __init__(
        self,
        choice: Choice,
        alpha: float,
        *,
        placeholders: Placeholders,
        align: int,
        score: Score,
        early: Choice | None = None,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.represents = placeholders == "slow_fast"
        self.align = align
        self.score: Score = score
        self._choices = {True: early or choice, False: choice}
        self.has_early_form = self._choices[True] != choice
        self.choose_early_(False)

    def choose_early_(self, early: bool) -> None:
        choice = self._choices[early]
        self.keep, self.selects, self.reduces = choice.keep, choice.selects, choice.keep < 1.0

    def settle_(self, index: int, steps: Sequence[nn.Module]) -> None:
        self.wants_class_attention = _row_is_read(index, cast("Sequence[Step]", steps))

    def enter(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        state = _state_of(stream)
        active = self.active(stream.layout)
        if active < stream.layout.tokens:
            return self._selected(state, tokens, stream, active) if self.selects else (tokens, stream)
        if state.waiting is None:
            return tokens, stream
        tokens, z, state = state.join(tokens, stream.z)
        return tokens, replace(stream, z=z, token_state=state)

    def leave(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        if not self.wants_class_attention:
            return tokens, stream
        if stream.class_attention is None:
            raise ConfigError("this step's attention gives no class row, by which Evo-ViT would choose the patches")
        return tokens, replace(stream, token_state=_followed(_state_of(stream), stream.class_attention, self.alpha))

    def active(self, layout: TokenLayout) -> int:
        """How many tokens take part, a representative not counted."""
        others = layout.prefix + int(self.represents)
        return layout.prefix + kept_patches(layout.patches, self.keep, others=others, align=self.align)

    def describe(self) -> str:
        return "all" if not self.reduces else f"kept {100 * self.keep:g} %{self._manner()}"

    def patches_kept(self, layout: TokenLayout) -> int:
        return self.active(layout) - layout.prefix

    def describe_for(self, layout: TokenLayout) -> str:
        kept = self.patches_kept(layout)
        return "all" if kept == layout.patches else f"kept {kept} of {layout.patches}{self._manner()}"

    def _manner(self) -> str:
        chosen = f", chosen by {self.score.replace('_', ' ')} attention" if self.selects else ""
        return f"{chosen}, others {'follow' if self.represents else 'frozen'}"

    def _selected(self, state: SortedTokens, tokens: Tensor, stream: Stream, active: int) -> tuple[Tensor, Stream]:
        if state.scores is None:
            raise ConfigError("no step before this one gave a class row, by which Evo-ViT would choose the patches")
        falling, places = ranked(state.scores, state.prefix)
        waiting = falling[:, active - state.prefix :]
        # share_j = g_j / Σ g over the placeholders
        shares = waiting / waiting.sum(dim=1, keepdim=True).clamp_min(_TINY) if self.represents else None
        return replace(state, scores=falling).select(tokens, stream, places, active, shares)


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


def set_schedule_(model: nn.Module, schedule: Schedule) -> None:
    """Change between stage-wise and layer-wise selection, as the authors do in mid-training; weights stay.

    The model remembers the schedule that it has when it is saved.

    Raises:
        ConfigError: the model was not converted with Evo-ViT, or a step could not run in that schedule.
    """
    trunk = trunk_of(model)
    done = [entry for entry in trunk.history if entry.method == METHOD.name]
    if not done:
        raise ConfigError(f"this {type(model).__name__} was not converted with {METHOD.name!r}; it has no schedule")
    config = EvoViTConfig.model_validate({**done[0].options, "schedule": schedule})
    steps = cast("list[Step]", list(trunk.steps))
    rules = _rules(config, len(steps))
    check_reuse([step.but(tokens=rule) for step, rule in zip(steps, rules, strict=True)])
    for step, rule in zip(steps, rules, strict=True):
        step.tokens = rule.train(step.training)
    settle_(steps)
    entry = Conversion(METHOD.name, config.model_dump(mode="json"))
    trunk.history = tuple(entry if old is done[0] else old for old in trunk.history)


def resolve(config: EvoViTConfig, plan: Plan, analysis: Evidence | None) -> EvoViTConfig:
    """Fill in stages, shares and score, and check them against the plan.

    Raises:
        ConfigError: a stage out of range, shares that do not fit the stages, a score that the model does not have, or
            tokens that another method chooses already.
    """
    stages = _stages(config.stages, plan.depth)
    busy = plan.ruled_step
    if busy is not None:
        taken = plan.steps[busy].tokens.describe_for(plan.layout)
        raise ConfigError(f"evo_vit: step {busy} already has a rule for its tokens ({taken}); one of them can rule")
    resolved = config.model_copy(
        update={
            "stages": stages,
            "keep": _keep(config.keep, stages, plan.depth),
            "alpha": _alpha(config.alpha, stages, plan.depth),
            "score": _score(config.score, plan),
        }
    )
    check_reuse(apply(plan, resolved).steps)
    return resolved


def apply(plan: Plan, config: EvoViTConfig) -> Plan:
    """The plan with a rule for the tokens of every step."""
    rules = _rules(config, plan.depth)
    return plan.with_steps({index: step.but(tokens=rules[index]) for index, step in enumerate(plan.steps)})


def finish_(model: nn.Module, config: EvoViTConfig) -> None:
    """What changes outside the blocks: the readout."""
    if config.readout == "mean":
        read_patch_mean_(model)


def _stages(stages: tuple[int, ...] | None, depth: int) -> tuple[int, ...]:
    if depth < 2:
        raise ConfigError(f"evo_vit: {depth} block; the first must attend before patches can be chosen")
    if stages is None:
        return tuple(sorted({max(1, depth // 3), max(1, 2 * depth // 3)}))
    if not all(0 < stage < depth for stage in stages):
        raise ConfigError(
            f"evo_vit.stages={stages}: choose from 1..{depth - 1}; block 0 has no attention before it to choose by"
        )
    return stages


def _keep(keep: float | tuple[float, ...], stages: tuple[int, ...], depth: int) -> tuple[float, ...]:
    """One share per block; 1 before the first stage."""
    if isinstance(keep, tuple) and len(keep) == depth:
        early = [block for block in range(stages[0]) if keep[block] < 1.0]
        if early:
            raise ConfigError(
                f"evo_vit.keep[{early[0]}]={keep[early[0]]}: reduction starts at block {stages[0]} (stages={stages}); "
                "give 1 before it"
            )
        return keep
    per_stage = keep if isinstance(keep, tuple) else (keep,) * len(stages)
    if len(per_stage) != len(stages):
        raise ConfigError(
            f"evo_vit.keep={keep}: {len(per_stage)} shares; wanted one, one per stage ({len(stages)}: {stages}), "
            f"or one per block ({depth})"
        )
    ends = (*stages[1:], depth)
    shares = [1.0] * stages[0]
    for share, start, end in zip(per_stage, stages, ends, strict=True):
        shares += [share] * (end - start)
    return tuple(shares)


def _alpha(alpha: float | tuple[float, ...], stages: tuple[int, ...], depth: int) -> tuple[float, ...]:
    if not isinstance(alpha, tuple):
        return (1.0,) * stages[0] + (alpha,) * (depth - stages[0])
    if len(alpha) != depth:
        raise ConfigError(f"evo_vit.alpha={alpha}: {len(alpha)} rates; wanted one, or one per block ({depth})")
    return alpha


def _score(score: Score | None, plan: Plan) -> Score:
    own: Score = "class" if plan.adapter.has_class_token else "mean_query"
    if score not in (None, own):
        has = "has a" if own == "class" else "has no"
        raise ConfigError(
            f"evo_vit.score={score!r}: this {plan.adapter.family} {has} class token; its score is {own!r}"
        )
    return own


def _rules(config: EvoViTConfig, depth: int) -> list[Evolution]:
    """One rule per step, from a resolved config."""
    alpha = cast("tuple[float, ...]", config.alpha)
    return [
        Evolution(
            _choice(config, config.schedule, block),
            alpha[block],
            placeholders=config.placeholders,
            align=config.align,
            score=cast(Score, config.score),
            early=_choice(config, "layer", block),
        )
        for block in range(depth)
    ]


def _choice(config: EvoViTConfig, schedule: Schedule, block: int) -> Choice:
    stages, keep = cast("tuple[int, ...]", config.stages), cast("tuple[float, ...]", config.keep)
    if schedule == "layer":
        return Choice(keep[block], selects=block >= stages[0] and keep[block] < 1.0)
    entry = max((stage for stage in stages if stage <= block), default=0)
    return Choice(keep[entry], selects=block in stages and keep[entry] < 1.0)


def _row_is_read(index: int, steps: Sequence[Step]) -> bool:
    """Whether the class row of a step still matters when patches are chosen later."""
    if not steps[index].mixing.uses_attention:
        return False
    for later in steps[index + 1 :]:
        rule = later.tokens
        if rule.selects:
            return True
        overwritten = isinstance(rule, Evolution) and rule.alpha == 1.0 and not rule.reduces
        if overwritten and later.mixing.uses_attention:
            return False
    return False


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


METHOD = Method(
    name="evo_vit",
    config=EvoViTConfig,
    resolve=resolve,
    apply=apply,
    finish=finish_,
    source="Xu et al., AAAI 2022, arXiv 2108.01390",
)
