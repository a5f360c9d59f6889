"""The module that stands where timm's blocks stood, walking a plan.

timm meets its blocks in four ways, and the trunk serves each: it calls them at once (``self.blocks(x)``), loops over
them with keyword arguments, checkpoints them one by one, or slices the front part. Callers that loop receive *step
calls*: functions from all tokens in natural order to all tokens in natural order, which share the stream of that one
loop. Nothing is parked on a module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitslim.errors import ConfigError
from vitslim.models import BaseModel, BlockAdapter, Context, DenseTrace, TokenLayout
from vitslim.shapes import Count
from vitslim.trunk.axes import Axis, BoundBlock, LastLinear, Weights
from vitslim.trunk.grid import take_grid
from vitslim.trunk.plan import Conversion, Plan, Step, settle_
from vitslim.trunk.stream import Stream


class DroppedPart(nn.Module):
    """Stands where a block's attention was, once no step evaluates it any more. It has no parameters."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        raise ConfigError("this part was dropped by the conversion, since no step uses it; run the whole model instead")

    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Nothing to resize; ``Beit.set_input_size`` calls this on every block's attention."""


class Trunk(nn.Module):
    """All steps of a converted model; registered as ``model.blocks``.

    Pretrained parameters keep timm's names (``blocks.3.mlp.fc1.weight``), new ones are called
    ``blocks.steps.3.mixing...``. Parameters that no step uses are gone.

    Args:
        plan: the steps and the blocks they run.
        patch_embed: the model's patch embedding, read for the grid only: ``set_input_size`` changes it, and so does
            every image where the model's size is dynamic.
        base: how the dense model is built, for saving; ``None`` where it cannot be told.
    """

    def __init__(self, plan: Plan, patch_embed: nn.Module, base: BaseModel | None) -> None:
        super().__init__()
        for index in sorted({step.block for step in plan.steps}):
            self.add_module(str(index), plan.blocks[index])
        self.steps = nn.ModuleList(plan.steps)
        self.adapter: BlockAdapter = plan.adapter
        self.width = plan.width
        self.history: tuple[Conversion, ...] = plan.history
        self.base = base
        self.grad_checkpointing = False
        # In a tuple, so that it is not registered twice; the model owns it.
        self._patch_embed: tuple[nn.Module] = (patch_embed,)

    @property
    def plan(self) -> Plan:
        """The plan as it stands, sharing this trunk's modules."""
        blocks = {step.block: self.block_of(step) for step in self._steps()}
        return Plan(self.adapter, self.layout, self.width, blocks, tuple(self._steps()), self.history)

    @property
    def layout(self) -> TokenLayout:
        """Prefix and grid at the model's present image size."""
        grid: Any = self._patch_embed[0].grid_size
        return TokenLayout(self.adapter.prefix, (int(grid[0]), int(grid[1])))

    def forward(self, tokens: Tensor, **context: Any) -> Tensor:
        """Walk all steps: (b, n, d) tokens in natural order in and out."""
        stream = self.start(tokens)
        for step in self._steps():
            if self.grad_checkpointing and torch.is_grad_enabled():
                handed = handed_to(step, stream)
                tokens, stream = checkpoint(self.take, step, tokens, handed, context, use_reentrant=False)
            else:
                tokens, stream = self.take(step, tokens, stream, context)
        return tokens if stream.token_state is None else stream.token_state.restore(tokens)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only what passes between steps for the backward pass, where the trunk is called at once.

        timm's models loop over the steps when their own ``set_grad_checkpointing`` is on, and need nothing here.
        """
        self.grad_checkpointing = enable

    def start(self, tokens: Tensor) -> Stream:
        """The stream at the beginning of a walk."""
        return Stream(layout=self._layout_of(tokens.shape[1], take_grid(self._patch_embed[0])))

    def take(self, step: Step, tokens: Tensor, stream: Stream, context: Context) -> tuple[Tensor, Stream]:
        """Take one step with active tokens in, active tokens out."""
        bound = BoundBlock(self.adapter, self.block_of(step))
        return step(bound, tokens, replace(stream, context=context))

    def block_of(self, step: Step) -> nn.Module:
        """The block whose weights a step runs."""
        return self.get_submodule(str(step.block))

    def new_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that the dense model did not have, by their name within the trunk."""
        return {f"steps.{name}": parameter for name, parameter in self.steps.named_parameters()}

    def parameters_fitted_apart(self) -> dict[str, nn.Parameter]:
        """Those of the new parameters that training end to end leaves as they are; only ``local_loss`` fits them."""
        return {
            f"{name}.{own}": parameter
            for name, axis in self.named_modules()
            if isinstance(axis, Axis) and axis.fitted_apart
            for own, parameter in axis.named_parameters()
        }

    @property
    def needs_one_size(self) -> dict[str, str]:
        """What keeps a file of this model to one image size, and why: by the words that describe each choice."""
        axes = (axis for step in self._steps() for axis in (step.mixing, step.tokens, step.weights))
        return {axis.describe(): axis.needs_one_size for axis in axes if axis.needs_one_size}

    @property
    def chooses(self) -> bool:
        """Whether some step picks tokens or keys by comparing numbers."""
        return any(axis.chooses for step in self._steps() for axis in (step.mixing, step.tokens))

    @property
    def has_early_form(self) -> bool:
        """Whether some step's method chooses tokens in another way early in training."""
        return any(step.tokens.has_early_form for step in self._steps())

    def choose_early_(self, early: bool) -> None:
        """Choose tokens as the methods do early in training, or as they do from then on; weights stay.

        It is a matter of a training, so the history knows nothing of it: a model is saved and loaded in its last form.

        Raises:
            ConfigError: a step could not run in that form; nothing has changed then.
        """
        steps = self._steps()
        for step in steps:
            step.tokens.choose_early_(early)
        try:
            settle_(steps)
        except ConfigError:
            for step in steps:
                step.tokens.choose_early_(not early)
            raise

    def local_loss(self, dense: DenseTrace) -> dict[int, Tensor]:
        """Teacher-forced, layer-local imitation losses, one scalar for every step with something to fit.

        Every new module reads what the dense model itself computed, so that no gradient flows between steps and all of
        them are fitted at once.
        """
        losses = {index: step.local_loss(dense) for index, step in enumerate(self._steps())}
        return {index: loss for index, loss in losses.items() if loss is not None}

    def last_linears(self, dense: DenseTrace) -> list[LastLinear]:
        """Regressions that fit the last layers of new modules in closed form; the same order for every trace."""
        return [found for step in self._steps() for found in step.last_linears(dense)]

    def summary(self) -> list[dict[str, Any]]:
        """The plan as plain data, one row per step: in words, and in typed fields for whatever reads it.

        ``attention`` is the kind of attention, ``kept`` of ``of`` patches take part, ``shares_with`` is the first step
        that runs the same block, ``converted`` whether the step differs at all from timm's block.
        """
        steps = self._steps()
        first = {step.block: index for index, step in reversed(list(enumerate(steps)))}
        return [self._row(index, step, first[step.block]) for index, step in enumerate(steps)]

    def _row(self, index: int, step: Step, first: int) -> dict[str, Any]:
        kept, patches = step.tokens.patches_kept(self.layout), self.layout.patches
        attention, shares = step.mixing.attention, first < index
        return {
            "step": index,
            "block": step.block,
            "mixing": step.mixing.describe(),
            "tokens": step.tokens.describe_for(self.layout),
            "weights": step.weights.describe(),
            "parameters": sum(p.numel() for p in (*self.block_of(step).parameters(), *step.parameters())),
            "attention": attention,
            "kept": kept,
            "of": patches,
            "shares_with": first if shares else None,
            "converted": attention != "dense" or kept < patches or shares or type(step.weights) is not Weights,
        }

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[StepCall]:
        walk = _Walk(self)
        return iter([StepCall(walk, index) for index in range(len(self))])

    @overload
    def __getitem__(self, index: int) -> nn.Module: ...
    @overload
    def __getitem__(self, index: slice) -> Trunk: ...
    def __getitem__(self, index: int | slice) -> nn.Module | Trunk:
        """A slice is a trunk of the front steps; a number is the block that the step runs, as the step sees it."""
        if isinstance(index, int):
            step = self._steps()[index]
            return step.seen(BoundBlock(self.adapter, self.block_of(step)))
        if index.start not in (None, 0) or index.step not in (None, 1):
            raise ConfigError(f"blocks[{index.start}:{index.stop}:{index.step}]: a trunk can only be cut at its end")
        plan = self.plan
        return Trunk(replace(plan, steps=plan.steps[index]), self._patch_embed[0], None)

    def _steps(self) -> list[Step]:
        return list(self.steps)  # pyright: ignore[reportReturnType]

    def _layout_of(self, tokens: Count, noted: tuple[Count, Count] | None) -> TokenLayout:
        layout = self.layout
        patches = tokens - layout.prefix
        if noted is not None and patches == noted[0] * noted[1]:
            return TokenLayout(layout.prefix, noted)
        if patches == layout.patches:
            return layout
        # Tokens that came past the patch embedding.
        side = math.isqrt(patches)
        if side * side != patches:
            raise ConfigError(
                f"{tokens} tokens do not fit a grid of {layout.grid} with {layout.prefix} prefix tokens, nor a square"
            )
        return TokenLayout(layout.prefix, (side, side))


class StepCall:
    """One step of one loop, for callers that walk by themselves; other attributes are the block's."""

    def __init__(self, walk: _Walk, index: int) -> None:
        self._walk = walk
        self._index = index

    def __call__(self, tokens: Tensor, **context: Any) -> Tensor:
        return self._walk.take(self._index, tokens, context)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._walk.trunk[self._index], name)


class _Walk:
    """The stream of one loop. A step that is run again, as gradient checkpointing does, finds the stream it had."""

    def __init__(self, trunk: Trunk) -> None:
        self.trunk = trunk
        self.done = 0
        self.active: Tensor | None = None
        self.stream: Stream | None = None
        self.entries: dict[int, tuple[Tensor | None, Stream]] = {}

    def take(self, index: int, tokens: Tensor, context: Mapping[str, Any]) -> Tensor:
        step: Any = self.trunk.steps[index]
        if index < self.done:
            return self._again(index, step, tokens, context)
        if index > self.done:
            raise ConfigError(f"step {index} was called before step {self.done}; steps of a trunk are walked in order")
        stream = self.trunk.start(tokens) if self.stream is None else self.stream
        active = self.active
        if torch.is_grad_enabled():
            self.entries[index] = (active, handed_to(step, stream))
        taken, stream = self.trunk.take(step, tokens if active is None else active, stream, context)
        self.done, self.stream = index + 1, stream
        if stream.token_state is None:
            self.active = None
            return taken
        self.active = taken
        return stream.token_state.restore(taken)

    def _again(self, index: int, step: Step, tokens: Tensor, context: Mapping[str, Any]) -> Tensor:
        if index not in self.entries:
            raise ConfigError(
                f"step {index} was called twice in one walk; iterate over the blocks anew for each forward"
            )
        active, stream = self.entries[index]
        taken, stream = self.trunk.take(step, tokens if active is None else active, stream, context)
        return taken if stream.token_state is None else stream.token_state.restore(taken)


def handed_to(step: Step, stream: Stream) -> Stream:
    """The stream as a step reads it; what waits for a backward pass then holds no ẑ that nobody wants."""
    return stream if step.mixing.reads_z else replace(stream, z=None)


def drop_unused_(plan: Plan) -> None:
    """Take the attention out of every block that no step attends with, and of what steps see in its place."""
    attending: set[nn.Module] = set()
    idle: set[nn.Module] = set()
    for step in plan.steps:
        block = plan.blocks[step.block]
        seen = {block, step.seen(BoundBlock(plan.adapter, block))}
        (attending if step.mixing.uses_attention else idle).update(seen)
    for block in idle - attending:
        for part in plan.adapter.attention_parts:
            setattr(block, part, DroppedPart())
