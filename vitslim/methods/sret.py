"""SReT: adjacent blocks share their weight matrices, each application keeping a low-rank residual of its own.

Sources: Shen et al., "Sliced Recursive Transformer", ECCV 2022, arXiv 2111.05297, for recursion, non-linear projection
(NLL), learnable residual coefficients (LRC) and sliced attention; Bae et al., "Relaxed Recursive Transformers", arXiv
2410.20672, for turning pretrained layers into shared ones with residuals. SReT's authors train their own pyramid from
nothing (``vitslim.models.sret_pyramid``); a pretrained isotropic ViT in recursive form is ours.

It saves parameters, not arithmetic: memory, files and engines shrink, latency does not.

Departures: norms are unshared, as are biases, LayerScale and LRC, since they are cheap and hold each depth's
statistics; NLL starts as the identity; sliced attention has a fixed permutation, and prefix tokens belong to every
slice.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator
from torch import nn

from vitslim.errors import ConfigError
from vitslim.methods.base import Evidence, MethodConfig, register_method, require_evidence
from vitslim.methods.grouping import Groups, alike_groups, runs, stepwise_picks
from vitslim.methods.layers import parse_layers, parse_numbers, steps_of
from vitslim.methods.recursion import Shared, realise_shared
from vitslim.methods.slices import Sliced, realise_slices
from vitslim.plans import AttentionChoice, Dense, ModelPlan, OwnWeights, StepPlan
from vitslim.trunk import Conversion, build, trunk_of


class SretConfig(MethodConfig):
    """Options of the recursive conversion."""

    groups: Groups | Literal["auto", "runs"] | None = Field(default=None, examples=["1-2; 3-5"])
    """Blocks that share, as lists or as text. By default those whose outputs an analysis found alike where one is made,
    else runs of ``group_size`` between the unshared ends; ``auto`` demands the analysis, ``runs`` are runs in every
    case."""
    group_size: int = Field(default=2, ge=2, examples=["3"])
    """Blocks per group (A A B B is 2), with an analysis on average."""
    keep_first: int = Field(default=1, ge=0, examples=["2"])
    """Blocks at the front that stay as they are."""
    keep_last: int = Field(default=1, ge=0, examples=["2"])
    """The same at the end."""
    shared: Literal["average", "stepwise"] = "average"
    """The shared matrix is the members' average, or one member's (stepwise: picked at even steps from the first to the
    last grouped block)."""
    rank: int | Literal["full"] | None = Field(default=None, examples=["16"])
    """Rank of the residuals, from 0; 0 is pure sharing, ``full`` the dense model again. By default a twelfth of the
    width, which gives back about a quarter of what sharing saves."""
    recursions: int = Field(default=1, ge=1, le=1000, examples=["2"])
    """Applications of each grouped block in a row; all but the first start as the identity."""
    nll: bool = False
    """A non-linear projection after each application."""
    nll_ratio: float = Field(default=1.0, gt=0.0, le=8.0, examples=["2"])
    """Hidden width of that projection over the width."""
    lrc: bool | None = None
    """Learnable residual coefficients. By default where ``recursions`` needs them."""
    slices: tuple[int, ...] = Field(default=(1,), examples=["2,4"])
    """Slices of the attention at the first, second .. application within a group; 1 is whole attention. From the second
    application on the patches are permuted before."""
    seed: int = Field(default=0, examples=["1"])
    """Seed of the permutations."""
    merged: bool = False
    """Write W' + B A out for each block: memory and latency of the dense model (see ``merge_residuals``)."""

    @field_validator("groups", mode="before")
    @classmethod
    def _read_groups(cls, value: Any) -> Any:
        if value in (None, "auto", "runs"):
            return value
        parts = [part for part in value.split(";") if part.strip()] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or any(isinstance(part, int) for part in parts):
            raise ValueError("wanted groups of blocks, such as '1-2; 3-4' or [[1, 2], [3, 4]]")
        return tuple(parse_layers(part) for part in parts)

    @field_validator("slices", mode="before")
    @classmethod
    def _read_slices(cls, value: Any) -> Any:
        return parse_numbers(value)

    @field_validator("slices")
    @classmethod
    def _some_slices(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError("name one number of slices or more, each at least 1")
        return value

    @field_validator("rank")
    @classmethod
    def _not_negative(cls, value: int | str | None) -> int | str | None:
        if isinstance(value, int) and value < 0:
            raise ValueError("a rank is 0 or more, or 'full'")
        return value


def merge_residuals(model: nn.Module) -> nn.Module:
    """A copy in which every grouped block has its own dense matrices W' + B A again, under timm's names.

    Residuals cost two small products per linear map; merged, the model has the latency of the dense one, and its
    memory. NLL, LRC, slices and further applications stay. It is saved and loaded as it is.

    Raises:
        ConfigError: the model was not converted with SReT, or is merged already.
    """
    trunk = trunk_of(model)
    plan, history = trunk.model_plan, trunk.history
    weights = {index: step.weights for index, step in enumerate(plan.steps) if isinstance(step.weights, Shared)}
    if not any(choice.has_view for choice in weights.values()):
        merged_before = any(choice.merged for choice in weights.values())
        raise ConfigError(f"nothing to merge: {'already merged' if merged_before else 'no steps share matrices'}")
    merged = {
        index: plan.steps[index].but(weights=choice.model_copy(update={"merged": True}))
        for index, choice in weights.items()
    }
    entries = (
        Conversion(entry.method, {**entry.options, "merged": True}) if entry.method == "sret" else entry
        for entry in history
    )
    return build(plan.with_steps(merged), model, history=tuple(entries))


@register_method(
    "sret",
    SretConfig,
    source="Shen et al., ECCV 2022, arXiv 2111.05297; Bae et al., 2024, arXiv 2410.20672",
    modules={Shared: realise_shared, Sliced: realise_slices},
    advised="groups",
    chosen=lambda before, after: [list(group) for group in _shared_groups(after)],
    usual="runs",
    neutral={"groups": ()},
    forms={"sliced": {"slices": (2, 4)}, "repeated": {"recursions": 2}},
)
def sret(plan: ModelPlan, options: SretConfig, evidence: Evidence | None) -> ModelPlan:
    """The plan with the blocks of each group sharing their matrices and applied ``options.recursions`` times."""
    groups = _groups(options, plan, evidence)
    _check_groups(groups, plan)
    grouped = steps_of(plan, "sret.groups", (block for group in groups for block in group))
    if options.recursions > 1:
        _check_repeatable(options, plan)
    if max(options.slices) > 1:
        changed = [plan.steps[index] for index in grouped if not isinstance(plan.steps[index].attention, Dense)]
        if changed:
            raise ConfigError(
                f"sret.slices={options.slices}: block {changed[0].block} has no dense attention "
                f"({changed[0].attention.describe()})"
            )
    taken: dict[int, list[StepPlan]] = {}
    for members, pick in zip(groups, stepwise_picks(groups), strict=True):
        home = pick if options.shared == "stepwise" else members[0]
        for place, member in enumerate(members):
            (index,) = steps_of(plan, "sret.groups", (member,))
            taken[index] = _applications(plan.steps[index], members, home, place * options.recursions, options, plan)
    steps = [one for index, step in enumerate(plan.steps) for one in taken.get(index, [step])]
    return plan.model_copy(update={"steps": tuple(steps)})


def _groups(options: SretConfig, plan: ModelPlan, evidence: Evidence | None) -> Groups:
    if isinstance(options.groups, tuple):
        return options.groups
    if options.groups == "auto" and evidence is None:
        raise ConfigError(
            "sret.groups='auto' needs an analysis: pass analysis=vitslim.analyze(model, data=...), or --data on the "
            "command line"
        )
    blocks = list(dict.fromkeys(step.block for step in plan.steps))
    middle = blocks[options.keep_first : len(blocks) - options.keep_last]
    if len(middle) < 2:
        raise ConfigError(
            f"sret: of {len(blocks)} blocks the first {options.keep_first} and the last {options.keep_last} stay, so "
            "that fewer than two are left to share; lower keep_first and keep_last, or name groups"
        )
    if options.groups == "runs" or evidence is None:
        return runs(middle, options.group_size)
    return alike_groups(require_evidence(evidence, "cka", "block"), middle, -(-len(middle) // options.group_size))


def _shared_groups(plan: ModelPlan) -> list[tuple[int, ...]]:
    return list(dict.fromkeys(step.weights.members for step in plan.steps if isinstance(step.weights, Shared)))


def _check_groups(groups: Groups, plan: ModelPlan) -> None:
    grouped = [block for group in groups for block in group]
    twice = next((block for block in grouped if grouped.count(block) > 1), None)
    if twice is not None:
        raise ConfigError(f"sret.groups={groups}: block {twice} is named twice")
    if not all(groups):
        raise ConfigError("sret.groups: a group is empty; name at least one block in each")
    for index in steps_of(plan, "sret.groups", grouped):
        step = plan.steps[index]
        if not isinstance(step.weights, OwnWeights):
            raise ConfigError(f"sret.groups: block {step.block} has other weights already ({step.weights.describe()})")
        if sum(other.block == step.block for other in plan.steps) > 1:
            raise ConfigError(f"sret.groups: block {step.block} is applied several times already; leave it out")


def _check_repeatable(options: SretConfig, plan: ModelPlan) -> None:
    if options.lrc is False:
        raise ConfigError("sret.lrc=False: further applications need LRC to start as the identity; leave it out")
    changed = next((index for index, step in enumerate(plan.steps) if not step.is_dense), None)
    if changed is not None:
        words = ", ".join(choice.describe() for choice in plan.steps[changed].choices)
        raise ConfigError(
            f"sret.recursions: step {changed} is not dense any more ({words}); convert with sret first, or use "
            "recursions=1"
        )


def _applications(
    step: StepPlan, members: tuple[int, ...], home: int, number: int, options: SretConfig, plan: ModelPlan
) -> list[StepPlan]:
    """All applications in place of one step, of which the first is that of ``number`` within its group."""
    width, made = plan.channels, list[StepPlan]()
    # Every linear map of a block has the width on one of its sides.
    rank = options.rank if isinstance(options.rank, int) else width // 12 if options.rank is None else width
    lrc = options.recursions > 1 if options.lrc is None else options.lrc
    for turn in range(options.recursions):
        weights = Shared(
            members=members,
            home=home,
            shared=options.shared,
            rank=rank,
            application=turn,
            lrc=lrc,
            nll=options.nll_ratio if options.nll else None,
            merged=options.merged,
        )
        changed: dict[str, Any] = {"attention": _attention(step, number + turn, options)}
        if len(members) > 1 or lrc or options.nll:
            changed["weights"] = weights
        made.append(step.but(**changed))
    return made


def _attention(step: StepPlan, number: int, options: SretConfig) -> AttentionChoice:
    """Of application ``number`` within its group."""
    slices = options.slices[number % len(options.slices)]
    if slices == 1:
        return step.attention
    # As the authors do: the first application of a group in raster order, the others permuted.
    return Sliced(groups=slices, seed=None if number == 0 else options.seed + number)
