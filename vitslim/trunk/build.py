"""Making a plan's modules: the one place where a model becomes what its plan says."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitslim.arguments import checked
from vitslim.errors import ConfigError
from vitslim.models import BaseModel, BlockAdapter, TokenLayout, adapter_for, token_layout
from vitslim.models.readout import read_patch_mean_
from vitslim.models.shape_of import model_shape, outside_shape
from vitslim.models.stream_width import narrow_stream_
from vitslim.plans import (
    AllTokens,
    Choice,
    Dense,
    DenseMlp,
    ModelPlan,
    ModelShape,
    NoAttention,
    NoMlp,
    OwnWeights,
    Place,
    StepPlan,
    check,
    dense_plan,
    places,
)
from vitslim.plans.place import parts_used
from vitslim.trunk.axes import BoundBlock, DenseAttention, MlpBranch, NoAttentionBranch, NoMlpBranch, TokenRule, Weights
from vitslim.trunk.grid import watch_grid_
from vitslim.trunk.step import Step
from vitslim.trunk.trunk import Conversion, DroppedPart, Trunk

_OF_THE_BLOCKS = ("family", "width", "prefix", "has_class_token", "patch", "positions_per_block", "own_bias", "blocks")


@dataclass(frozen=True)
class Site:
    """Where a choice is realised: its place in the plan, and the block of the copied model that it may change.

    Args:
        place: what the plan says of the step and what is before it.
        adapter: for the blocks.
        layout: tokens at the plan's image size.
        former: the step of the model as it was before that this one takes the place of.
        weights_follow: all weights will be read from a file, so a start that is expensive to compute may be left out.
        shared: blocks of shared matrices by the index they are registered under; the first step of a group adds its.
        blocks: of the copied model, by their index in the dense one; a realiser may exchange one.
        weights: the modules of the weights axis of the steps before this one.
    """

    place: Place
    adapter: BlockAdapter
    layout: TokenLayout
    former: Step | None
    device: torch.device
    dtype: torch.dtype
    weights_follow: bool
    shared: dict[int, nn.Module]
    blocks: dict[int, nn.Module]
    weights: list[nn.Module]

    @property
    def block(self) -> nn.Module:
        """Of the step."""
        return self.blocks[self.place.step.block]

    @property
    def width(self) -> int:
        """Channels d of the stream."""
        return self.place.plan.channels

    @property
    def is_drawn(self) -> bool:
        """Whether start values are wanted: not on the meta device, and not where weights follow from a file."""
        return self.device.type != "meta" and not self.weights_follow

    def bound(self) -> BoundBlock:
        """The block as the step saw it before, or as it is."""
        bound = BoundBlock(self.adapter, self.block)
        return bound if self.former is None else self.former.weights.bind(bound)


Realiser = Callable[[Any, Site], nn.Module]
"""From a choice and its site to the module of its axis."""

_REALISERS: dict[type[Choice], Realiser] = {
    Dense: lambda choice, site: DenseAttention(),
    NoAttention: lambda choice, site: NoAttentionBranch(),
    AllTokens: lambda choice, site: TokenRule(choice),
    DenseMlp: lambda choice, site: MlpBranch(),
    NoMlp: lambda choice, site: NoMlpBranch(),
    OwnWeights: lambda choice, site: Weights(),
}


def register_realiser(choice: type[Choice], realiser: Realiser) -> None:
    """Say how a kind of choice is built."""
    _REALISERS[choice] = realiser


@checked
def plan_of(model: nn.Module) -> ModelPlan:
    """The plan of a model: its trunk's with what surrounds it now, or that of a dense one.

    Raises:
        UnsupportedModelError: no adapter knows the model.
    """
    if not is_converted(model):
        return dense_plan(model_shape(model))
    plan = trunk_of(model).model_plan
    return plan.model_copy(update={"model": plan.model.model_copy(update=outside_shape(model))})


@checked
def build(
    plan: ModelPlan,
    model: nn.Module,
    *,
    history: tuple[Conversion, ...] | None = None,
    base: BaseModel | None = None,
    weights_follow: bool = False,
    measured: Sequence[tuple[Tensor, Tensor]] | None = None,
) -> nn.Module:
    """A copy of a model whose blocks are a trunk that runs the plan; the given model stays as it is.

    Choices that the model has already keep their modules and weights, others are made anew; what starts in closed form
    from weights alone does so here.

    Args:
        model: the dense model of the plan, or one converted from it.
        history: the conversions that led to the plan; by default the model's.
        base: how the dense model is built; by default what a converted model knows of it.
        weights_follow: all weights will be read from a file.
        measured: of the tokens in the dense model, by which a narrower stream is chosen; see ``covariances``.

    Raises:
        ConfigError: ``check`` refuses the plan, the plan is for another model, or wants what is gone from this one.
    """
    before = plan_of(model)
    require_fitting(plan, before)
    copied = copy.deepcopy(model)
    if before.image_size != plan.image_size:
        with warnings.catch_warnings():
            # timm indexes BEiT's tables by a list, of which torch says that it will once mean something else.
            warnings.filterwarnings("ignore", "Using a non-tuple sequence", UserWarning)
            cast(Any, copied).set_input_size(img_size=plan.image_size)
    if plan.width is not None and before.width is None:
        is_drawn = not weights_follow and next(copied.parameters()).device.type != "meta"
        blocks, adapter = _own_blocks(copied)
        _require_nothing_beside(blocks, copied)
        narrow_stream_(copied, blocks, adapter, plan.width, measured, is_drawn=is_drawn)
    if history is None:
        history = trunk_of(model).history if is_converted(model) else ()
    if base is None and is_converted(model):
        base = trunk_of(model).base
    adapter = trunk_of(copied).adapter if is_converted(copied) else adapter_for(copied)
    trunk = _trunk(plan, before, copied, adapter, weights_follow)
    trunk.history, trunk.base = history, base
    if adapter.context_per_block:
        first = {step.block: index for index, step in reversed(list(enumerate(before.steps)))}
        _keep_positions_(copied, [first[step.block] for step in plan.steps])
    copied.blocks = trunk.train(copied.training)
    if getattr(copied, "dynamic_img_size", False):
        watch_grid_(cast(nn.Module, copied.patch_embed))
    if plan.readout == "mean" and before.readout != "mean":
        read_patch_mean_(copied)
    return copied


def require_fitting(plan: ModelPlan, before: ModelPlan) -> None:
    """Refuse a plan that cannot be built from a model with the plan ``before``.

    Raises:
        ConfigError: every reason at once.
    """
    errors = _mismatches(plan, before) + check(plan) or _lost_widths(plan, before)
    if errors:
        raise ConfigError("; ".join(errors))


def is_converted(model: nn.Module) -> bool:
    """Whether the model's blocks are a trunk."""
    return isinstance(getattr(model, "blocks", None), Trunk)


def trunk_of(model: nn.Module) -> Trunk:
    """The trunk of a converted model.

    Raises:
        ConfigError: the model is dense.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, Trunk):
        raise ConfigError(f"this {type(model).__name__} is dense; convert it first (vitslim.convert)")
    return blocks


def _mismatches(plan: ModelPlan, before: ModelPlan) -> list[str]:
    """What the plan wants that the model has not; what surrounds the blocks may differ."""
    wanted, found = plan.model, before.model
    keys = [name for name in _OF_THE_BLOCKS if _known(wanted, name) != _known(found, name)]
    if keys:
        differences = ", ".join(_difference(name, getattr(wanted, name), getattr(found, name)) for name in keys)
        return [f"the plan is for another model ({differences}); make a plan for this one"]
    # A model that a plan is built into has the plan's own size already, where that is another one.
    if found.image_size not in (wanted.image_size, plan.image_size):
        made, here = (" × ".join(map(str, one.image_size)) for one in (wanted, found))
        return [
            f"the plan was made for images of {made} px, this model takes {here} px; open the model at the plan's size "
            "(--img-size), or make a plan for this one"
        ]
    if before.width is not None and plan.width != before.width:
        return [
            f"the plan wants a stream of {plan.width or wanted.width} channels, this one's has {before.width}; start "
            "from the dense model"
        ]
    gone = {step.block for step in plan.steps} - {step.block for step in before.steps}
    if gone:
        blocks = ", ".join(map(str, sorted(gone)))
        return [f"the plan wants blocks {blocks}, which an earlier conversion dropped; start from the dense model"]
    return []


def _own_blocks(model: nn.Module) -> tuple[dict[int, nn.Module], BlockAdapter]:
    """The blocks that are left, by their index in the dense model, and what speaks to them."""
    if not is_converted(model):
        return dict(enumerate(cast("list[nn.Module]", list(cast(Any, model.blocks))))), adapter_for(model)
    trunk = trunk_of(model)
    return {step.plan.block: trunk.block_of(step) for step in trunk.all_steps()}, trunk.adapter


def _require_nothing_beside(blocks: Mapping[int, nn.Module], model: nn.Module) -> None:
    """Refuse a narrower stream for a model in which other modules than the blocks' own read and write it."""
    of_blocks = {id(parameter) for block in blocks.values() for parameter in block.parameters()}
    named = cast("nn.Module", model.blocks).named_parameters(prefix="blocks")
    beside = [name for name, parameter in named if id(parameter) not in of_blocks]
    if beside:
        raise ConfigError(
            f"the stream of this model is read by {len(beside)} weights beside its blocks' own, such as "
            f"{beside[0]}, which nothing narrows; narrow it first, or both at once, from the dense model"
        )


def _known(model: ModelShape, name: str) -> Any:
    """A field as plans of all versions have it."""
    if name != "blocks":
        return getattr(model, name)
    return tuple(block.model_copy(update={"others_per_channel": {}}) for block in model.blocks)


def _difference(name: str, wanted: Any, found: Any) -> str:
    if name == "blocks":
        return f"{len(wanted)} blocks, this one has {len(found)}" if len(wanted) != len(found) else "other blocks"
    return f"{name.replace('_', ' ')} {wanted}, this one's {found}"


def _lost_widths(plan: ModelPlan, before: ModelPlan) -> list[str]:
    """What steps want of blocks whose parts or units an earlier conversion dropped."""
    had = {place.step.block: place for place in places(before)}
    errors: list[str] = []
    for at in places(plan):
        old, used = had[at.step.block], at.parts_used()
        lost = [part for part in ("attention", "mlp") if part in used and part not in old.parts_used()]
        if "attention" in used and not lost and at.block.heads > old.block.heads:
            lost.append(f"{at.block.heads} heads")
        if "mlp" in used and "mlp" not in lost and at.block.hidden > old.block.hidden:
            lost.append(f"{at.block.hidden} neurons")
        errors += [
            f"step {at.index}: the plan wants the {one} of block {at.step.block}, which an earlier conversion dropped; "
            "start from the dense model"
            for one in lost
        ]
    return errors


def _keep_positions_(model: nn.Module, entries: list[int]) -> None:
    """Mixed rotary positions: timm counts the tables as it counts the steps."""
    rope = cast(Any, model).rope
    if entries != list(range(rope.freqs.shape[1])):
        rope.freqs = nn.Parameter(rope.freqs.detach()[:, entries], rope.freqs.requires_grad)
        rope.depth = len(entries)


def _trunk(plan: ModelPlan, before: ModelPlan, model: nn.Module, adapter: BlockAdapter, weights_follow: bool) -> Trunk:
    old = trunk_of(model) if is_converted(model) else None
    former: dict[tuple[int, int], Step] = {}
    if old is None:
        blocks = dict(enumerate(cast("list[nn.Module]", list(cast(Any, model.blocks)))))
    else:
        former = dict(zip(before.applications(), old.all_steps(), strict=True))
        # What a step saw as its block: a shared one's own view keeps what the group does not hold.
        blocks = {step.plan.block: old.block_of(step) for step in reversed(old.all_steps())}
    parameter = next(parameter for block in blocks.values() for parameter in block.parameters())
    shared: dict[int, nn.Module] = {}
    weights: list[nn.Module] = []
    layout = replace(token_layout(model), prefix=adapter.prefix)
    sites = [
        Site(
            place,
            adapter,
            layout,
            former.get(key),
            parameter.device,
            parameter.dtype,
            weights_follow,
            shared,
            blocks,
            weights,
        )
        for place, key in zip(places(plan), plan.applications(), strict=True)
    ]
    # All widths first, since shared matrices are made of narrowed ones.
    branches = [(_realised(site, "mlp"), _realised(site, "attention")) for site in sites]
    for site in sites:
        weights.append(_realised(site, "weights"))
    steps = [_step(site, *parts) for site, parts in zip(sites, branches, strict=True)]
    used = {step.home: shared.get(step.home, blocks.get(step.plan.block)) for step in steps}
    trunk = Trunk(plan, steps, cast("dict[int, nn.Module]", used), adapter, cast(nn.Module, model.patch_embed))
    _drop_unused_(trunk)
    return trunk


def _step(site: Site, mlp: nn.Module, attention: nn.Module) -> Step:
    plan = site.place.step
    return Step(
        plan,
        plan.home,
        cast(Any, attention),
        cast(TokenRule, _REALISERS[type(plan.tokens)](plan.tokens, site)),
        cast(MlpBranch, mlp),
        cast(Weights, site.weights[site.place.index]),
        wants_row=site.place.class_row,
    )


def _realised(site: Site, axis: str) -> nn.Module:
    """The module of one axis: the former one where the choice is the same."""
    choice = getattr(site.place.step, axis)
    if site.former is not None and getattr(site.former.plan, axis) == choice:
        return getattr(site.former, axis)
    return _REALISERS[type(choice)](choice, site)


def _drop_unused_(trunk: Trunk) -> None:
    """Take out of every block, and of what steps see in its place, the parts that no step uses."""
    used: dict[nn.Module, set[str]] = {}
    for step in trunk.all_steps():
        block = trunk.block_of(step)
        parts = _parts_used(step.plan, trunk.adapter)
        for seen in {block, step.seen(BoundBlock(trunk.adapter, block))}:
            used.setdefault(seen, set()).update(parts)
    adapter = trunk.adapter
    for block, parts in used.items():
        for part in {*adapter.attention_parts, *adapter.attention_add_parts, *adapter.mlp_parts} - parts:
            _drop_(block, part)


def _parts_used(plan: StepPlan, adapter: BlockAdapter) -> set[str]:
    names = {
        "attention": adapter.attention_parts,
        "attention_add": [part for part in adapter.attention_add_parts if part not in adapter.attention_parts],
        "mlp": adapter.mlp_parts,
    }
    return {name for part in parts_used([plan]) for name in names[part]}


def _drop_(block: nn.Module, part: str) -> None:
    found = getattr(block, part, None)
    if isinstance(found, nn.Parameter):
        setattr(block, part, None)
    elif isinstance(found, nn.Module):
        setattr(block, part, DroppedPart())
