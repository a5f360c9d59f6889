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

import copy
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from vitslim.errors import ConfigError
from vitslim.methods.base import Advised, Evidence, Method, MethodConfig, block_similarity
from vitslim.methods.grouping import Groups, alike_groups, runs, stepwise_picks
from vitslim.methods.layers import parse_layers, parse_numbers
from vitslim.methods.recursion import (
    Recursive,
    SharedBlock,
    SharedLinear,
    identity_projection,
    linear_maps,
    merged_view,
    view_of,
)
from vitslim.methods.slices import SlicedMixing
from vitslim.models.sret_parts import NonLinearProjection
from vitslim.trunk import BoundBlock, Conversion, DenseMixing, Mixing, Plan, Step, Weights, install_trunk_, trunk_of


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
    history = trunk_of(model).history
    done = [entry for entry in history if entry.method == METHOD.name]
    if not done or done[0].options["merged"]:
        raise ConfigError(f"nothing to merge: {'already merged' if done else f'not converted with {METHOD.name!r}'}")
    merged = copy.deepcopy(model)
    trunk = trunk_of(merged)
    entry = Conversion(METHOD.name, {**done[0].options, "merged": True})
    plan = replace(_merged(trunk.plan), history=tuple(entry if old is done[0] else old for old in history))
    return install_trunk_(merged, plan, trunk.base)


def resolve(config: SretConfig, plan: Plan, analysis: Evidence | None) -> SretConfig:
    """Fill in groups, rank and LRC, and check them against the plan.

    Raises:
        ConfigError: ``auto`` without an analysis, groups that overlap or are out of range, blocks that cannot share
            because their matrices differ in shape, slices that do not divide the patches, or steps that another method
            has changed where dense ones are wanted.
    """
    groups = _groups(config, plan, analysis)
    grouped = [block for group in groups for block in group]
    for block in grouped:
        if not 0 <= block < plan.depth:
            raise ConfigError(f"sret.groups={groups}: block {block} does not exist; choose from 0..{plan.depth - 1}")
        if grouped.count(block) > 1:
            raise ConfigError(f"sret.groups={groups}: block {block} is named twice")
    for group in groups:
        _check_alike(group, plan)
    _check_slices(config.slices, grouped, plan)
    if config.recursions > 1:
        _check_repeatable(grouped, plan)
        if config.lrc is False:
            raise ConfigError("sret.lrc=False: further applications need LRC to start as the identity; leave it out")
    rank = config.rank
    if rank is None:
        rank = plan.width // 12
    # Every linear map of a block has the width on one of its sides.
    rank = plan.width if rank == "full" else rank
    lrc = config.recursions > 1 if config.lrc is None else config.lrc
    return config.model_copy(update={"groups": groups, "rank": rank, "lrc": lrc})


def recommend(config: SretConfig, plan: Plan, analysis: Evidence) -> Groups:
    """The groups of blocks whose outputs an analysis found alike.

    Raises:
        ConfigError: the analysis has no similarity of blocks, or too few blocks are left to share.
    """
    middle = _middle(config, plan)
    return alike_groups(block_similarity(analysis), middle, -(-len(middle) // config.group_size))


def apply(plan: Plan, config: SretConfig) -> Plan:
    """The plan with the blocks of ``config.groups`` sharing their matrices and applied ``config.recursions`` times."""
    groups = cast(Groups, config.groups)
    blocks = dict(plan.blocks)
    taken: dict[int, tuple[Step, ...]] = {index: (step,) for index, step in enumerate(plan.steps)}
    for members, pick in zip(groups, stepwise_picks(groups), strict=True):
        group = _group(members, pick, plan, config)
        taken.update({member: _applications(member, group, plan, config) for member in members})
        if group.shared is not None:
            for member in members:
                del blocks[member]
            blocks[group.home] = group.shared
    recursive = replace(plan, blocks=blocks, steps=tuple(step for index in taken for step in taken[index]))
    return _merged(recursive) if config.merged else recursive


def _groups(config: SretConfig, plan: Plan, analysis: Evidence | None) -> Groups:
    if isinstance(config.groups, tuple):
        return config.groups
    if config.groups != "runs" and analysis is not None:
        return recommend(config, plan, analysis)
    if config.groups == "auto":
        raise ConfigError(
            "sret.groups='auto' needs an analysis: pass analysis=vitslim.analyze(model, data=...), or --data on the "
            "command line"
        )
    return runs(_middle(config, plan), config.group_size)


def _middle(config: SretConfig, plan: Plan) -> list[int]:
    middle = list(range(config.keep_first, plan.depth - config.keep_last))
    if len(middle) < 2:
        raise ConfigError(
            f"sret: of {plan.depth} blocks the first {config.keep_first} and the last {config.keep_last} stay, so that "
            "fewer than two are left to share; lower keep_first and keep_last, or name groups"
        )
    return middle


def _check_alike(group: tuple[int, ...], plan: Plan) -> None:
    if not group:
        raise ConfigError("sret.groups: a group is empty; name at least one block in each")
    shapes = {block: _shapes(_seen(plan.steps[block], plan)) for block in group}
    if len(group) == 1:
        return
    changed = [block for block in group if type(plan.steps[block].weights) is Recursive]
    if changed:
        raise ConfigError(f"sret.groups: block {changed[0]} shares its weights already")
    for block in group[1:]:
        for path in shapes[group[0]].keys() & shapes[block].keys():
            if shapes[group[0]][path] != shapes[block][path]:
                raise ConfigError(
                    f"sret.groups: blocks {group[0]} and {block} cannot share {path}, which is "
                    f"{shapes[group[0]][path]} in one and {shapes[block][path]} in the other; put them into two groups"
                )


def _shapes(block: nn.Module) -> dict[str, tuple[int, int]]:
    return {path: (linear.out_features, linear.in_features) for path, linear in linear_maps(block).items()}


def _seen(step: Step, plan: Plan) -> nn.Module:
    return step.seen(BoundBlock(plan.adapter, plan.blocks[step.block]))


def _check_slices(slices: tuple[int, ...], grouped: list[int], plan: Plan) -> None:
    if max(slices) == 1:
        return
    patches = plan.layout.patches
    if any(patches % count for count in slices):
        fitting = ", ".join(str(count) for count in range(1, patches + 1) if patches % count == 0)
        raise ConfigError(f"sret.slices={slices}: {patches} patches are cut into equal slices only by {fitting}")
    sorting = next((index for index, step in enumerate(plan.steps) if step.tokens.selects), plan.depth)
    for block in grouped:
        mixing = plan.steps[block].mixing
        if type(mixing) is not DenseMixing:
            raise ConfigError(f"sret.slices={slices}: block {block} has no dense attention ({mixing.describe()})")
        if block >= sorting:
            raise ConfigError(
                f"sret.slices={slices}: slices cut the whole grid, but from step {sorting} on some tokens wait"
            )


def _check_repeatable(grouped: list[int], plan: Plan) -> None:
    if plan.adapter.context_per_block:
        raise ConfigError(
            f"sret.recursions: this {plan.adapter.family} has rotary positions of its own for every block (mixed), and "
            "none for further applications; use recursions=1"
        )
    changed = [index for index, step in enumerate(plan.steps) if not step.is_plain]
    if changed:
        # Name a step in which the change shows: a token rule stands in all steps, also where everybody takes part.
        index = plan.ruled_step if type(plan.steps[changed[0]].mixing) is DenseMixing else changed[0]
        index = changed[0] if index is None else index
        step = plan.steps[index]
        raise ConfigError(
            f"sret.recursions: step {index} is not dense any more ({step.mixing.describe()}, tokens "
            f"{step.tokens.describe_for(plan.layout)}); convert with sret first, or use recursions=1"
        )


@dataclass(frozen=True)
class _Group:
    """Blocks that share: their indices, the index under which the shared matrices are registered, and these."""

    members: tuple[int, ...]
    home: int
    shared: SharedBlock | None


def _group(members: tuple[int, ...], pick: int, plan: Plan, config: SretConfig) -> _Group:
    home = pick if config.shared == "stepwise" else members[0]
    # One block alone shares with nobody and runs as it is, perhaps several times.
    return _Group(members, home, _shared_block(members, pick, plan, config) if len(members) > 1 else None)


def _shared_block(members: tuple[int, ...], pick: int, plan: Plan, config: SretConfig) -> SharedBlock:
    maps = {member: linear_maps(plan.blocks[member]) for member in members}
    shared: dict[str, Tensor] = {}
    for path in dict.fromkeys(path for member in members for path in maps[member]):
        # A block whose attention another method took out has no matrices there.
        owners = [member for member in members if path in maps[member]]
        if config.shared == "stepwise":
            nearest = min(owners, key=lambda owner: abs(owner - pick))
            matrix = maps[nearest][path].weight.detach().clone()
        else:
            together = torch.stack([maps[owner][path].weight.detach().double() for owner in owners])
            matrix = together.mean(dim=0).to(plan.dtype)
        shared[path] = matrix.requires_grad_(any(maps[owner][path].weight.requires_grad for owner in owners))
    return SharedBlock(shared)


def _applications(member: int, group: _Group, plan: Plan, config: SretConfig) -> tuple[Step, ...]:
    """All applications in place of one dense step."""
    step = plan.steps[member]
    made: list[Step] = []
    home = step.block if group.shared is None else group.home
    lender: Recursive | None = None
    for turn in range(config.recursions):
        number = group.members.index(member) * config.recursions + turn
        weights: Weights = step.weights
        if group.shared is not None or config.lrc or config.nll:
            weights = Recursive(
                _name(group.members, turn, config),
                _view(member, group, plan, config) if turn == 0 else None,
                lender=lender,
                coefficients=_coefficients(plan, repeated=turn > 0) if config.lrc else None,
                nll=_projection(plan, config) if config.nll else None,
            )
            lender = lender or weights
        made.append(Step(home, _mixing(step, number, plan, config), step.tokens, weights, origin=step.origin))
    return tuple(made)


def _view(member: int, group: _Group, plan: Plan, config: SretConfig) -> nn.Module | None:
    if group.shared is None:
        return None
    block = plan.blocks[member]
    walked_again = config.recursions > 1 or member + 1 in group.members
    view = view_of(block, group.shared, cast(int, config.rank), walked_again=walked_again)
    if plan.device.type != "meta" and not plan.weights_follow:
        for path, linear in linear_maps(block).items():
            cast(SharedLinear, view.get_submodule(path)).imitate_(linear.weight)
    return view


def _name(group: tuple[int, ...], turn: int, config: SretConfig) -> str:
    rank = f", rank {config.rank}" if config.rank else ""
    own = "own" if len(group) == 1 else f"shared by {', '.join(map(str, group))}{rank}"
    return own if turn == 0 else f"{own}, application {turn + 1} of {config.recursions}"


def _coefficients(plan: Plan, *, repeated: bool) -> Tensor:
    # With a2 = a4 = 0 a further application gives back what it reads.
    start = [1.0, 0.0, 1.0, 0.0] if repeated else [1.0, 1.0, 1.0, 1.0]
    return torch.tensor(start, device=plan.device, dtype=plan.dtype)


def _projection(plan: Plan, config: SretConfig) -> NonLinearProjection:
    with torch.device(plan.device):
        return identity_projection(plan.width, config.nll_ratio).to(plan.dtype)


def _mixing(step: Step, number: int, plan: Plan, config: SretConfig) -> Mixing:
    """Of application ``number`` within its group."""
    slices = config.slices[number % len(config.slices)]
    if slices == 1:
        return step.mixing if config.recursions == 1 else DenseMixing()
    # As the authors do: the first application of a group in raster order, the others permuted.
    with torch.device(plan.device):
        return SlicedMixing(slices, plan.layout, None if number == 0 else config.seed + number)


def _merged(plan: Plan) -> Plan:
    """The plan with every view turned into a block of its own again."""
    blocks = {index: block for index, block in plan.blocks.items() if not isinstance(block, SharedBlock)}
    steps: list[Step] = []
    for step in plan.steps:
        weights = step.weights
        if not isinstance(weights, Recursive) or weights.view is None:
            steps.append(step)
            continue
        if weights.own is not None:
            blocks[step.origin] = merged_view(weights.own)
        kept = None
        if weights.lrc is not None or weights.nll is not None:
            kept = Recursive(f"own, merged from {weights.name}", None, coefficients=weights.lrc, nll=weights.nll)
        steps.append(Step(step.origin, step.mixing, step.tokens, kept, origin=step.origin))
    return replace(plan, blocks=dict(sorted(blocks.items())), steps=tuple(steps))


METHOD = Method(
    name="sret",
    config=SretConfig,
    resolve=resolve,
    apply=apply,
    source="Shen et al., ECCV 2022, arXiv 2111.05297; Bae et al., 2024, arXiv 2410.20672",
    advised=Advised("groups", usual="runs", recommend=recommend),
)
