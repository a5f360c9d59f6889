"""What a step can choose on each axis: frozen data with a ``kind``, from which modules are built elsewhere.

A choice says in words what it is, names every reason why it cannot stand where it stands, and counts its cost. Nothing
here knows torch. Methods add kinds of their own beside the module that realises them (``register_method``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from vitslim.shapes import Config

if TYPE_CHECKING:
    from vitslim.plans.place import Place
    from vitslim.plans.plan import StepPlan

Axis = Literal["attention", "tokens", "mlp", "weights"]


@dataclass(frozen=True)
class Cost:
    """What a part of a step costs for one image.

    Args:
        macs: multiply-accumulates of matrix products and convolutions.
        parameters: live ones, each counted once in a model.
        activations: elements of the largest output of a matrix product or convolution; fused attention counts as one.
    """

    macs: int = 0
    parameters: int = 0
    activations: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.macs + other.macs,
            self.parameters + other.parameters,
            max(self.activations, other.activations),
        )


@dataclass(frozen=True)
class TokenCount:
    """How many tokens take part at one point of the model.

    Args:
        patches: active patch tokens.
        extra: tokens that stand for inactive ones (a representative, a fused token).
        is_sorted: whether the tokens have left their natural order.
        is_merged: whether a token stands for several patches, whose number weighs it as a key.
    """

    patches: int
    extra: int = 0
    is_sorted: bool = False
    is_merged: bool = False


def share_of(count: int, rate: float) -> int:
    """The smallest number that is at least a share of the count, without being fooled by rounding."""
    # 0.07 · 100 is 7.000000000000001, whose ceiling would be 8.
    return math.ceil(round(count * rate, 6))


class Choice(Config):
    """One choice of a step."""

    axis: ClassVar[Axis]
    kind: Any
    """A literal string in each choice, by which plan files know it."""

    def describe(self) -> str:
        """A few words for lists and pages."""
        return self.kind

    def errors(self, at: Place) -> list[str]:
        """Why this choice cannot stand there: sentences without the step's number; empty where it can."""
        return []


class AttentionChoice(Choice):
    """How the output of the attention branch is obtained."""

    axis: ClassVar[Axis] = "attention"
    attends: ClassVar[bool] = True
    """Whether the block's own attention is evaluated; where no step does, its weights are dropped."""
    adds_to_block: ClassVar[bool] = True
    """Whether its output passes the block's LayerScale and residual add."""
    reads_z: ClassVar[bool] = False
    """Whether it reads the attention output of the step before."""
    whole_grid: ClassVar[bool] = False
    """Whether it works on all patches in natural order alone."""
    picks: ClassVar[bool] = False
    """Whether it picks keys by comparing numbers, which rounding may turn."""
    fixed_size: ClassVar[str] = ""
    """Why a file of free image size cannot hold it, in words; empty where it can."""

    @property
    def reads_grid(self) -> bool:
        """Whether it reads the step before for every patch, also for inactive ones."""
        return False

    def heads(self, heads: int) -> int:
        """How many heads of a block of so many are left."""
        return heads

    def engine_advice(self, at: Place) -> str:
        """A form that is better on a GPU, in words and with the arithmetic; empty where there is none."""
        return ""

    def cost(self, at: Place) -> Cost:
        """Beside the block's own parameters, which are counted once for all its steps."""
        raise NotImplementedError


class TokenChoice(Choice):
    """Which tokens take part."""

    axis: ClassVar[Axis] = "tokens"
    picks: ClassVar[bool] = False
    fixed_size: ClassVar[str] = ""

    @property
    def selects(self) -> bool:
        """Whether other tokens may be active in this step's attention than in that before."""
        return False

    @property
    def reads_keys(self) -> bool:
        """Whether it reads the keys of this step's attention."""
        return False

    def early(self) -> TokenChoice:
        """The choice as its method makes it early in training; this one where there is no such form."""
        return self

    def rows_read(self, steps: Sequence[StepPlan], index: int) -> Iterable[int]:
        """The steps whose class row decides a selection here, this being the choice of step ``index``."""
        return ()

    def enter(self, count: TokenCount, at: Place) -> TokenCount:
        """Active in the attention, from those active before the step."""
        return count

    def between(self, count: TokenCount, at: Place) -> TokenCount:
        """Active in the MLP and after the step, from those active in the attention."""
        return count

    def cost(self, at: Place) -> Cost:
        return Cost()


class MlpChoice(Choice):
    """How the MLP branch is computed."""

    axis: ClassVar[Axis] = "mlp"
    uses_block: ClassVar[bool] = True
    """Whether the block's MLP is evaluated; where no step does, its weights are dropped."""

    def hidden(self, hidden: int) -> int:
        """How many neurons of so many are left."""
        return hidden

    def cost(self, at: Place) -> Cost:
        raise NotImplementedError


class WeightsChoice(Choice):
    """Whose weights a step runs with."""

    axis: ClassVar[Axis] = "weights"

    def registered_as(self, block: int) -> int:
        """The index under which the trunk holds what the step runs; that of a shared block is another's."""
        return block

    def linear_macs(self, at: Place, path: str, tokens: int, *, called: bool) -> int:
        """Multiply-accumulates of one linear map of the block for so many tokens.

        Args:
            called: the map is called as a module; otherwise the block may read its matrix.
        """
        return tokens * at.block.linears[path].products

    def linear_activations(self, at: Place, path: str, tokens: int, *, called: bool) -> int:
        """Elements of the largest product on the way through one linear map of the block."""
        return tokens * at.block.linears[path].outputs

    def cost(self, at: Place) -> Cost:
        """All parameters that the step brings, and what it computes beside the block's linear maps."""
        return Cost(parameters=at.block_parameters())


class Dense(AttentionChoice):
    """The block's own attention."""

    kind: Literal["dense"] = "dense"

    def cost(self, at: Place) -> Cost:
        return dense_attention_cost(at, at.tokens_in_attention, called=at.class_row or at.needs_operands)


class NoAttention(AttentionChoice):
    """No attention branch at all."""

    attends: ClassVar[bool] = False
    adds_to_block: ClassVar[bool] = False
    kind: Literal["none"] = "none"

    def cost(self, at: Place) -> Cost:
        return Cost()


class AllTokens(TokenChoice):
    """Everybody takes part, or whoever did before."""

    kind: Literal["all"] = "all"


class DenseMlp(MlpChoice):
    """The block's own MLP."""

    kind: Literal["dense"] = "dense"

    def cost(self, at: Place) -> Cost:
        return linear_cost(at, "mlp", at.tokens_in_mlp, called=True)


class NoMlp(MlpChoice):
    """No MLP branch at all."""

    uses_block: ClassVar[bool] = False
    kind: Literal["none"] = "none"

    def cost(self, at: Place) -> Cost:
        return Cost()


class OwnWeights(WeightsChoice):
    """The block's own."""

    kind: Literal["own"] = "own"


def linear_cost(at: Place, part: str, tokens: int, *, called: bool) -> Cost:
    """All linear maps of one part of the block, parameters not counted."""
    paths = [path for path, linear in at.block.linears.items() if linear.part == part]
    macs = sum(at.step.weights.linear_macs(at, path, tokens, called=called) for path in paths)
    largest = (at.step.weights.linear_activations(at, path, tokens, called=called) for path in paths)
    return Cost(macs=macs, activations=max(largest, default=0))


def dense_attention_cost(at: Place, tokens: int, *, called: bool) -> Cost:
    """Linear maps, Q Kᵀ and A V over all pairs of tokens, and the class row where it is read."""
    cost = linear_cost(at, "attention", tokens, called=called)
    width = at.block.heads * at.block.head_width
    # 2 n² h e, and n h e for one row of it
    core = 2 * tokens * tokens * width + (tokens * width if at.class_row else 0)
    return replace(cost, macs=cost.macs + core)
