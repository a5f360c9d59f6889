"""The plan: which steps a model runs, in which order, with which choices; data alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError

from vitslim.errors import ConfigError
from vitslim.plans.choices import (
    AllTokens,
    AttentionChoice,
    Axis,
    Choice,
    Dense,
    DenseMlp,
    MlpChoice,
    NoAttention,
    NoMlp,
    OwnWeights,
    TokenChoice,
    WeightsChoice,
)
from vitslim.plans.shape import ModelShape
from vitslim.registry import Registry
from vitslim.shapes import Config
from vitslim.validation import describe_errors

PLAN_VERSION = 1
MOST_STEPS = 100_000  # a thousand recursions of a hundred blocks
_GROUP = "vitslim.methods"

KINDS: dict[Axis, Registry[type[Choice]]] = {
    axis: Registry(f"{axis} choice", _GROUP, own="vitslim.methods")
    for axis in ("attention", "tokens", "mlp", "weights")
}
"""The kinds of choices by axis; methods register theirs."""


def register_choice(choice: type[Choice]) -> None:
    """Make a kind of choice known to plan files.

    Raises:
        ConfigError: another kind of that name stands on its axis.
    """
    KINDS[choice.axis].register(choice.model_fields["kind"].default, choice)


for _choice in (Dense, NoAttention, AllTokens, DenseMlp, NoMlp, OwnWeights):
    register_choice(_choice)


def _reader(axis: Axis) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if isinstance(value, Choice):
            return value
        if not isinstance(value, Mapping) or not isinstance(cast("Mapping[str, Any]", value).get("kind"), str):
            raise ValueError(f"wanted a choice such as {{kind: {KINDS[axis].names()[0]}}}")
        try:
            kind = KINDS[axis].get(cast("Mapping[str, Any]", value)["kind"])
        except ConfigError as error:
            raise ValueError(str(error)) from None
        try:
            return kind.model_validate(value)
        except ValidationError as error:
            raise ValueError("; ".join(describe_errors(error, kind))) from None

    return read


class StepPlan(Config):
    """One application of a block, with one choice on each axis."""

    block: int = Field(ge=0)
    """The dense block whose pretrained weights the step starts from, counted from 0."""
    attention: Annotated[SerializeAsAny[AttentionChoice], BeforeValidator(_reader("attention"))] = Dense()
    tokens: Annotated[SerializeAsAny[TokenChoice], BeforeValidator(_reader("tokens"))] = AllTokens()
    mlp: Annotated[SerializeAsAny[MlpChoice], BeforeValidator(_reader("mlp"))] = DenseMlp()
    weights: Annotated[SerializeAsAny[WeightsChoice], BeforeValidator(_reader("weights"))] = OwnWeights()

    @property
    def is_dense(self) -> bool:
        """Whether it does just what the dense block does."""
        return self == StepPlan(block=self.block)

    @property
    def choices(self) -> tuple[AttentionChoice, TokenChoice, MlpChoice, WeightsChoice]:
        return self.attention, self.tokens, self.mlp, self.weights

    @property
    def home(self) -> int:
        """The index under which the trunk holds the block that it runs."""
        return self.weights.registered_as(self.block)

    def but(self, **choices: Choice) -> StepPlan:
        """The same step with some choices replaced, by axis."""
        return self.model_copy(update=choices)


class ModelPlan(Config):
    """What a conversion makes of a dense model; a block that no step names is dropped."""

    format_version: Literal[1] = PLAN_VERSION
    model: ModelShape
    """The dense model that it is for."""
    image_size: tuple[int, int]
    """(height, width) in pixels."""
    width: int | None = Field(default=None, ge=1)
    """Channels of the stream between the blocks; ``None`` for the model's."""
    readout: Literal["model", "mean"] = "model"
    """What the classifier reads: as in the dense model, or the mean of all patch tokens."""
    steps: tuple[StepPlan, ...] = Field(max_length=MOST_STEPS)

    @property
    def depth(self) -> int:
        return len(self.steps)

    @property
    def channels(self) -> int:
        """Of the stream between the blocks."""
        return self.width or self.model.width

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches."""
        return self.model.grid(self.image_size)

    @property
    def patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def dropped(self) -> tuple[int, ...]:
        """Blocks of the dense model that no step names."""
        named = {step.block for step in self.steps}
        return tuple(block for block in range(self.model.depth) if block not in named)

    def with_steps(self, changed: Mapping[int, StepPlan]) -> ModelPlan:
        """The same plan with some steps replaced, by their index."""
        steps = tuple(changed.get(index, step) for index, step in enumerate(self.steps))
        return self.model_copy(update={"steps": steps})

    def applications(self) -> list[tuple[int, int]]:
        """For each step its block and how many steps before it name the same one; no two steps have the same."""
        seen: dict[int, int] = {}
        keys: list[tuple[int, int]] = []
        for step in self.steps:
            keys.append((step.block, seen.get(step.block, 0)))
            seen[step.block] = keys[-1][1] + 1
        return keys


def dense_plan(model: ModelShape, image_size: tuple[int, int] | None = None) -> ModelPlan:
    """Every block once, in order, as it is."""
    steps = tuple(StepPlan(block=block) for block in range(model.depth))
    return ModelPlan(model=model, image_size=image_size or model.image_size, steps=steps)


def changed_blocks(before: ModelPlan, after: ModelPlan) -> list[int]:
    """The dense blocks with which something else happens than before, sorted."""
    old: dict[int, list[StepPlan]] = {}
    new: dict[int, list[StepPlan]] = {}
    for plan, steps in ((before, old), (after, new)):
        for step in plan.steps:
            steps.setdefault(step.block, []).append(step)
    return sorted(block for block in old.keys() | new.keys() if old.get(block) != new.get(block))


def plan_json(plan: ModelPlan) -> dict[str, Any]:
    """The plan as plain data, from which ``read_plan`` reads the same."""
    return json.loads(plan.model_dump_json())
