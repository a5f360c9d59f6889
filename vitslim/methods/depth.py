"""Depth: whole blocks are dropped, each run of them perhaps replaced by one linear map.

Which blocks: those whose loss, together, changes the output least (``drop_order`` of an analysis).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.methods.base import Evidence, MethodConfig, register_method, require_evidence
from vitslim.methods.layers import parse_layers
from vitslim.methods.stand_in import LinearStandIn, stand_in_at, stand_in_cost
from vitslim.plans import AttentionChoice, Cost, ModelPlan, NoMlp, OwnWeights, Place, StepPlan
from vitslim.trunk import Attention, BoundBlock, FitBatch, Regression, Site, Stream

SHARE = 2 / 3
"""Of the blocks that stay unless something else is asked for: of the dense model's work that of Evo-ViT, about."""


class LinearAttention(AttentionChoice):
    """A linear map of the tokens, for the attention branch or, where the step has no MLP, for a run of blocks."""

    attends: ClassVar[bool] = False
    adds_to_block: ClassVar[bool] = False
    kind: Literal["linear"] = "linear"
    through: int = Field(ge=0)
    """Last block of the run that it stands for; the step's own where it stands for an attention branch."""

    def describe(self) -> str:
        return f"linear map through block {self.through}"

    def errors(self, at: Place) -> list[str]:
        block = at.step.block
        if not isinstance(at.step.mlp, NoMlp):
            wrong = self.through != block
            return [f"through={self.through}: with an MLP it stands for the attention of block {block} alone"] * wrong
        if not block <= self.through < at.plan.model.depth:
            return [f"through={self.through}: the run begins at block {block}; choose up to {at.plan.model.depth - 1}"]
        after = at.plan.steps[at.index + 1 :]
        if after and after[0].block <= self.through:
            return [f"through={self.through}: block {after[0].block} follows, which the map stands for already"]
        return []

    def cost(self, at: Place) -> Cost:
        return stand_in_cost(at, at.tokens_in_attention)


class LinearRun(Attention):
    """x ← x + W x + b in place of an attention branch or a run of blocks."""

    def __init__(self, maps: LinearStandIn, through: int, *, whole_blocks: bool) -> None:
        super().__init__()
        self.maps, self.through, self.whole_blocks = maps, through, whole_blocks

    def forward(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        return self.maps(tokens), replace(stream, z=None)

    def add(self, bound: BoundBlock, tokens: Tensor, stream: Stream) -> tuple[Tensor, Stream]:
        added, stream = self(bound, tokens, stream)
        return tokens + added, stream

    def regressions(self, batch: FitBatch) -> list[Regression]:
        wanted = batch.dense_outputs(self.through, attention_only=not self.whole_blocks)
        return self.maps.regressions(batch.tokens, wanted - batch.tokens)


def _linear_run(choice: LinearAttention, site: Site) -> LinearRun:
    return LinearRun(stand_in_at(site), choice.through, whole_blocks=isinstance(site.place.step.mlp, NoMlp))


def _read_layers(value: object) -> object:
    return value if value is None or value in ("middle", "auto") else parse_layers(value)


class DepthConfig(MethodConfig):
    """Options of depth."""

    layers: Annotated[tuple[int, ...] | Literal["middle", "auto"] | None, BeforeValidator(_read_layers)] = Field(
        default=None, examples=["4-7"]
    )
    """Blocks to drop, counted from 0; ``middle``; ``auto``: those that an analysis names. Not given: by the analysis
    where there is one, else the middle."""
    keep: int | None = Field(default=None, ge=1, examples=[8])
    """How many blocks stay where ``layers`` names none; default two thirds."""
    stand_in: bool = False
    """Put a linear map in place of each run of dropped blocks; the warm start fits it in closed form."""


@register_method(
    "depth",
    DepthConfig,
    source="block influence: Men et al. 2024, arXiv 2403.03853; joint damage and stand-ins are ours",
    modules={LinearAttention: _linear_run},
    advised="layers",
    usual="middle",
    neutral={"layers": ()},
    example={"layers": (2,)},
    forms={"stand-in": {"layers": (2,), "stand_in": True}},
    strengths=lambda plan: [{"keep": keep} for keep in range(plan.depth - 1, max(1, plan.depth // 4), -1)],
)
def depth(plan: ModelPlan, options: DepthConfig, evidence: Evidence | None) -> ModelPlan:
    """The plan without some of its blocks."""
    dropped = set(_dropped(plan, options, evidence))
    _check(plan, dropped)
    steps: list[StepPlan] = []
    last = -2
    for step in plan.steps:
        if step.block not in dropped:
            steps.append(step)
        elif not options.stand_in:
            continue
        elif last == step.block - 1:
            steps[-1] = steps[-1].but(attention=LinearAttention(through=step.block))
            last = step.block
        else:
            steps.append(step.but(attention=LinearAttention(through=step.block), mlp=NoMlp()))
            last = step.block
    return plan.model_copy(update={"steps": tuple(steps)})


def _dropped(plan: ModelPlan, options: DepthConfig, evidence: Evidence | None) -> tuple[int, ...]:
    """The blocks to drop, sorted."""
    if isinstance(options.layers, tuple):
        if options.keep is not None:
            raise ConfigError(f"depth.keep={options.keep}: the layers to drop are named already; give one of the two")
        return options.layers
    blocks = sorted({step.block for step in plan.steps})
    keep = round(SHARE * len(blocks)) if options.keep is None else options.keep
    count = len(blocks) - keep
    if not 0 <= count <= max(len(blocks) - 2, 0):
        raise ConfigError(
            f"depth.keep={keep}: this plan has {len(blocks)} blocks, of which the first and the last stay; "
            f"choose from {min(2, len(blocks))}..{len(blocks)}, or name layers"
        )
    if options.layers == "middle" or evidence is None:
        if options.layers == "auto":
            raise ConfigError(
                "depth.layers='auto' needs an analysis: pass analysis=vitslim.analyze(model, data=...), "
                "or --data on the command line"
            )
        first = 1 + (len(blocks) - 2 - count) // 2
        return tuple(blocks[first : first + count])
    order = [block for block in require_evidence(evidence, "drop_order") if block in blocks[1:-1]]
    influence = require_evidence(evidence, "block_influence")
    # Joint damage was measured for some; of the others those that turn their tokens least.
    rest = sorted((block for block in blocks[1:-1] if block not in order), key=lambda block: influence[block])
    return tuple(sorted([*order, *rest][:count]))


def _check(plan: ModelPlan, dropped: set[int]) -> None:
    missing = sorted(dropped - {step.block for step in plan.steps})
    if missing:
        raise ConfigError(
            f"depth.layers={tuple(sorted(dropped))}: block {missing[0]} is not there; "
            f"choose from {', '.join(str(block) for block in sorted({step.block for step in plan.steps}))}"
        )
    for step in plan.steps:
        if step.block not in dropped:
            continue
        if not isinstance(step.weights, OwnWeights):
            raise ConfigError(
                f"depth.layers: block {step.block} shares its weights with others ({step.weights.describe()}); "
                "convert with depth first"
            )
        if step.tokens.selects:
            raise ConfigError(
                f"depth.layers: at block {step.block} tokens are selected ({step.tokens.describe()}), which would be "
                "lost with it; convert with depth first, or drop other blocks"
            )
