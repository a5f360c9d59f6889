"""What a plan costs, from the data alone; counting the built model gives the same."""

from __future__ import annotations

from typing import Any

from vitslim.arguments import checked
from vitslim.plans.choices import Cost
from vitslim.plans.place import Place, places, relative_places
from vitslim.plans.plan import ModelPlan
from vitslim.shapes import Result


class StepCost(Result):
    """One step, for one image.

    Attributes:
        tokens: active in the attention; ``mlp_tokens`` in the MLP.
        macs: multiply-accumulates of matrix products and convolutions.
        parameters: those that no earlier step has counted.
        activations: elements of the largest output of a matrix product or convolution.
    """

    block: int
    tokens: int
    mlp_tokens: int
    macs: int
    parameters: int
    activations: int


class PlanCost(Result):
    """The whole model, for one image: its steps, the patch embedding, what lies behind the blocks.

    The activations are those of steps and patch embedding; what lies behind the blocks has fewer.
    """

    steps: tuple[StepCost, ...]
    macs: int
    parameters: int
    activations: int


@checked
def cost(plan: ModelPlan) -> PlanCost:
    """Multiply-accumulates, parameters and peak activations of a plan that ``check`` accepts."""
    steps = tuple(_step_cost(at) for at in places(plan))
    model = plan.model
    # What was pruned or merged comes back before the head, so that it reads all tokens.
    head = model.head_products + (model.prefix + plan.patches) * model.head_products_per_token
    outside = model.outside_parameters + plan.patches * model.positions_per_patch
    outside += len(plan.steps) * model.positions_per_block
    outside += model.shared_relative_heads * relative_places(plan.grid)
    # Onto the narrower stream and back from it, without biases.
    maps = 0 if plan.width is None else 2 * plan.width * model.width
    return PlanCost(
        steps=steps,
        macs=sum(step.macs for step in steps)
        + plan.patches * model.embed_products
        + head
        + (model.prefix + plan.patches) * maps,
        parameters=sum(step.parameters for step in steps) + outside + maps,
        activations=max(plan.patches * model.width, *(step.activations for step in steps)),
    )


def describe_steps(plan: ModelPlan) -> list[dict[str, Any]]:
    """One row per step for lists and tables: its choices in words, its cost."""
    return [
        {
            "step": index,
            "block": step.block,
            "attention": step.attention.describe(),
            "tokens": f"{step.tokens.describe()} ({of.tokens})",
            "mlp": step.mlp.describe(),
            "weights": step.weights.describe(),
            "macs": of.macs,
            "parameters": of.parameters,
            "activations": of.activations,
        }
        for index, (step, of) in enumerate(zip(plan.steps, cost(plan).steps, strict=True))
    ]


def _step_cost(at: Place) -> StepCost:
    total = sum((choice.cost(at) for choice in at.step.choices), start=Cost())
    return StepCost(
        block=at.step.block,
        tokens=at.tokens_in_attention,
        mlp_tokens=at.tokens_in_mlp,
        macs=total.macs,
        parameters=total.parameters,
        activations=total.activations,
    )
