"""The module that stands where timm's blocks stood, running a plan.

timm meets its blocks in four ways, and the trunk serves each: it calls them at once (``self.blocks(x)``), loops over
them with keyword arguments, checkpoints them one by one, or slices the front part. Callers that loop receive *step
calls*: functions from all tokens in natural order to all tokens in natural order, which share the stream of that one
loop. Nothing is parked on a module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vitslim.errors import ConfigError
from vitslim.models import BaseModel, BlockAdapter, Context, DenseTrace, TokenLayout
from vitslim.plans import ModelPlan, check, places
from vitslim.shapes import Count
from vitslim.trunk.axes import AxisModule, BoundBlock
from vitslim.trunk.grid import take_grid
from vitslim.trunk.step import Step
from vitslim.trunk.stream import Stream


@dataclass(frozen=True)
class Conversion:
    """One entry of a model's history: the method's name and the options it was given, as plain data."""

    method: str
    options: Mapping[str, Any]


class DroppedPart(nn.Module):
    """Stands where a block's attention was, once no step evaluates it any more. It has no parameters."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        raise ConfigError("this part was dropped by the conversion, since no step uses it; run the whole model instead")

    def set_window_size(self, window_size: tuple[int, int]) -> None:
        """Nothing to resize; ``Beit.set_input_size`` calls this on every block's attention."""


class Trunk(nn.Module):
    """All steps of a converted model; registered as ``model.blocks``.

    Pretrained parameters keep timm's names (``blocks.3.mlp.fc1.weight``), new ones are called
    ``blocks.steps.3.attention...``. Parameters that no step uses are gone.

    Args:
        plan: what the steps were built from.
        steps: one module per step of the plan.
        blocks: by the index under which they are registered (``Step.home``).
        adapter: speaks to the blocks.
        patch_embed: the model's patch embedding, read for the grid only: ``set_input_size`` changes it, and so does
            every image where the model's size is dynamic.
    """

    history: tuple[Conversion, ...]
    base: BaseModel | None
    """How the dense model is built, for saving; ``None`` where it is not known."""

    def __init__(
        self,
        plan: ModelPlan,
        steps: Sequence[Step],
        blocks: Mapping[int, nn.Module],
        adapter: BlockAdapter,
        patch_embed: nn.Module,
    ) -> None:
        super().__init__()
        for index in sorted(blocks):
            self.add_module(str(index), blocks[index])
        self.steps = nn.ModuleList(steps)
        self.adapter = adapter
        self.history, self.base = (), None
        self.grad_checkpointing = False
        self._plan = plan
        # In a tuple, so that it is not registered twice; the model owns it.
        self._patch_embed: tuple[nn.Module] = (patch_embed,)

    @property
    def model_plan(self) -> ModelPlan:
        """The plan, at the model's present image size."""
        embed: Any = self._patch_embed[0]
        size = (int(embed.img_size[0]), int(embed.img_size[1]))
        return self._plan if size == self._plan.image_size else self._plan.model_copy(update={"image_size": size})

    @property
    def width(self) -> int:
        """Channels d of the stream."""
        return self._plan.channels

    @property
    def layout(self) -> TokenLayout:
        """Prefix and grid at the model's present image size."""
        grid: Any = self._patch_embed[0].grid_size
        return TokenLayout(self.adapter.prefix, (int(grid[0]), int(grid[1])))

    def forward(self, tokens: Tensor, **context: Any) -> Tensor:
        """Run all steps: (b, n, d) tokens in natural order in and out."""
        stream = self.start(tokens)
        for step in self.all_steps():
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
        """The stream at the beginning of a forward."""
        return Stream(layout=self._layout_of(tokens.shape[1], take_grid(self._patch_embed[0])))

    def take(self, step: Step, tokens: Tensor, stream: Stream, context: Context) -> tuple[Tensor, Stream]:
        """Take one step with active tokens in, active tokens out."""
        bound = BoundBlock(self.adapter, self.block_of(step))
        return step(bound, tokens, replace(stream, context=context))

    def block_of(self, step: Step) -> nn.Module:
        """The block whose weights a step runs."""
        return self.get_submodule(str(step.home))

    def new_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters that the dense model did not have, by their name within the trunk."""
        return {f"steps.{name}": parameter for name, parameter in self.steps.named_parameters()}

    @property
    def fits(self) -> bool:
        """Whether a warm start has anything to fit."""
        return self._plan.width is not None or any(axis.fits for step in self.all_steps() for axis in step.axes)

    @property
    def fits_by_gradients(self) -> bool:
        """Whether a warm start takes optimiser steps, beyond what it solves in closed form."""
        axes = (axis for step in self.all_steps() for axis in step.axes)
        return any(axis.fits and type(axis).local_loss is not AxisModule.local_loss for axis in axes)

    def parameters_fitted_apart(self) -> dict[str, nn.Parameter]:
        """Those of the new parameters that training end to end leaves as they are; only ``local_loss`` fits them."""
        return {
            f"{name}.{own}": parameter
            for name, axis in self.named_modules()
            if isinstance(axis, AxisModule) and axis.fitted_apart
            for own, parameter in axis.named_parameters()
        }

    @property
    def needs_one_size(self) -> dict[str, str]:
        """What keeps a file of this model to one image size, and why: by the words that describe each choice."""
        choices = (choice for step in self._plan.steps for choice in (step.attention, step.tokens))
        return {choice.describe(): choice.fixed_size for choice in choices if choice.fixed_size}

    @property
    def chooses(self) -> bool:
        """Whether some step picks tokens or keys by comparing numbers."""
        return any(step.attention.picks or step.tokens.picks for step in self._plan.steps)

    @property
    def has_early_form(self) -> bool:
        """Whether some step's method chooses tokens in another way early in training."""
        return any(step.tokens.early() != step.tokens for step in self._plan.steps)

    def choose_early_(self, early: bool) -> None:
        """Choose tokens as the methods do early in training, or as they do from then on; weights stay.

        It is a matter of a training, so the plan knows nothing of it: a model is saved and loaded in its last form.

        Raises:
            ConfigError: a step could not run in that form; nothing has changed then.
        """
        plan = self.model_plan
        if early:
            plan = plan.with_steps({i: step.but(tokens=step.tokens.early()) for i, step in enumerate(plan.steps)})
            errors = check(plan)
            if errors:
                raise ConfigError("; ".join(errors))
        for step, place in zip(self.all_steps(), places(plan), strict=True):
            step.tokens.choice, step.wants_row = place.step.tokens, place.class_row

    def local_loss(self, dense: DenseTrace) -> dict[int, Tensor]:
        """Teacher-forced, layer-local imitation losses, one scalar for every step with something to fit.

        Every new module reads what the dense model itself computed, so that no gradient flows between steps and all of
        them are fitted at once.
        """
        losses = {index: step.local_loss(dense) for index, step in enumerate(self.all_steps())}
        return {index: loss for index, loss in losses.items() if loss is not None}

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[StepCall]:
        loop = _Loop(self)
        return iter([StepCall(loop, index) for index in range(len(self))])

    @overload
    def __getitem__(self, index: int) -> nn.Module: ...
    @overload
    def __getitem__(self, index: slice) -> Trunk: ...
    def __getitem__(self, index: int | slice) -> nn.Module | Trunk:
        """A slice is a trunk of the front steps; a number is the block that the step runs, as the step sees it."""
        if isinstance(index, int):
            step = self.all_steps()[index]
            return step.seen(BoundBlock(self.adapter, self.block_of(step)))
        if index.start not in (None, 0) or index.step not in (None, 1):
            raise ConfigError(f"blocks[{index.start}:{index.stop}:{index.step}]: a trunk can only be cut at its end")
        steps = self.all_steps()[index]
        plan = self._plan.model_copy(update={"steps": self._plan.steps[index]})
        return Trunk(
            plan, steps, {step.home: self.block_of(step) for step in steps}, self.adapter, self._patch_embed[0]
        )

    def all_steps(self) -> list[Step]:
        """The steps in order."""
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
    """One step of one loop, for callers that loop by themselves; other attributes are the block's."""

    def __init__(self, loop: _Loop, index: int) -> None:
        self._loop = loop
        self._index = index

    def __call__(self, tokens: Tensor, **context: Any) -> Tensor:
        return self._loop.take(self._index, tokens, context)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loop.trunk[self._index], name)


class _Loop:
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
            raise ConfigError(f"step {index} was called before step {self.done}; steps of a trunk are called in order")
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
                f"step {index} was called twice in one loop; iterate over the blocks anew for each forward"
            )
        active, stream = self.entries[index]
        taken, stream = self.trunk.take(step, tokens if active is None else active, stream, context)
        return taken if stream.token_state is None else stream.token_state.restore(taken)


def handed_to(step: Step, stream: Stream) -> Stream:
    """The stream as a step reads it; what waits for a backward pass then holds no ẑ that nobody wants."""
    return stream if step.plan.attention.reads_z else replace(stream, z=None)
