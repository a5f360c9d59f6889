"""One step within its plan, as a choice sees it that is checked or counted there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from vitslim.plans.choices import TokenCount
from vitslim.plans.plan import ModelPlan, StepPlan
from vitslim.plans.shape import BlockShape, ModelShape, Part


@dataclass(frozen=True)
class Place:
    """Step ``index`` of a plan whose blocks exist.

    Args:
        shape: of the dense model, on the plan's stream.
        before: the tokens that are active when it begins.
        row_readers: for each step whether its class row is read.
    """

    plan: ModelPlan
    index: int
    shape: ModelShape
    before: TokenCount
    row_readers: frozenset[int]

    @property
    def step(self) -> StepPlan:
        return self.plan.steps[self.index]

    @cached_property
    def dense_block(self) -> BlockShape:
        """The block as it was."""
        return self.shape.blocks[self.step.block]

    @cached_property
    def block(self) -> BlockShape:
        """The block with the heads and neurons that this step leaves it."""
        return self.block_of(self.step)

    def block_of(self, step: StepPlan) -> BlockShape:
        """The block of another step, in the same way."""
        dense = self.shape.blocks[step.block]
        return dense.narrowed(step.attention.heads(dense.heads), step.mlp.hidden(dense.hidden))

    @property
    def class_row(self) -> bool:
        """Whether the class row of its attention is read."""
        return self.index in self.row_readers

    @cached_property
    def in_attention(self) -> TokenCount:
        return self.step.tokens.enter(self.before, self)

    @cached_property
    def in_mlp(self) -> TokenCount:
        return self.step.tokens.between(self.in_attention, self)

    @property
    def tokens_in_attention(self) -> int:
        return self.plan.model.prefix + self.in_attention.patches + self.in_attention.extra

    @property
    def tokens_in_mlp(self) -> int:
        return self.plan.model.prefix + self.in_mlp.patches + self.in_mlp.extra

    @property
    def needs_operands(self) -> bool:
        """Whether queries and keys are projected apart: the keys are read, or their bias is not the module's own."""
        own_bias = self.in_attention.is_sorted and self.plan.model.own_bias
        return own_bias or self.in_attention.is_merged or self.step.tokens.reads_keys

    @property
    def is_first_of_block(self) -> bool:
        """Whether no earlier step names the same block."""
        return all(step.block != self.step.block for step in self.plan.steps[: self.index])

    def parts_used(self) -> list[Part]:
        """What any step uses of this step's block."""
        return parts_used([step for step in self.plan.steps if step.block == self.step.block])

    def block_parameters(self) -> int:
        """Live parameters of the block, counted at the first step that names it."""
        if not self.is_first_of_block:
            return 0
        used = self.parts_used()
        tables = self.position_tables() if "attention" in used else 0
        return tables + sum(self.block.parameters(part) for part in used)

    def position_tables(self) -> int:
        """Parameters of the block's own relative positions."""
        return self.block.heads * relative_places(self.plan.grid) if self.block.relative_positions else 0


def parts_used(steps: Sequence[StepPlan]) -> list[Part]:
    """What steps of one block use of it."""
    used: dict[Part, bool] = {
        "attention": any(step.attention.attends for step in steps),
        "attention_add": any(step.attention.adds_to_block for step in steps),
        "mlp": any(step.mlp.uses_block for step in steps),
    }
    return [part for part, is_used in used.items() if is_used]


def relative_places(grid: tuple[int, int]) -> int:
    """Rows of a table of relative positions: all differences of places, and three for the class token."""
    # (2 rows - 1)(2 columns - 1) + 3
    return (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3


def places(plan: ModelPlan) -> list[Place]:
    """All steps of a plan whose blocks exist, each with the tokens that reach it."""
    readers = frozenset(
        read for index, step in enumerate(plan.steps) for read in step.tokens.rows_read(plan.steps, index)
    )
    shape = plan.model if plan.width is None else plan.model.with_stream(plan.width)
    count = TokenCount(plan.patches)
    found: list[Place] = []
    for index in range(plan.depth):
        found.append(Place(plan, index, shape, count, readers))
        count = found[-1].in_mlp
    return found
