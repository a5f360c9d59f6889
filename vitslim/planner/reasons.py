"""Why each block of a plan became what it is: what that costs, what it does alone, what else there was."""

from __future__ import annotations

from vitslim.planner.result import StepReason
from vitslim.planner.search import Price
from vitslim.planner.steps import Changes
from vitslim.plans import ModelPlan, StepPlan


def reasons(plan: ModelPlan, dense: ModelPlan, changes: Changes, price: Price) -> list[StepReason]:
    """One for each dense block.

    The cost of a block is what the plan would save without its steps; where they cannot be left out, the dense block's.
    """
    steps: dict[int, list[StepPlan]] = {}
    for step in plan.steps:
        steps.setdefault(step.block, []).append(step)
    return [_reason(block, steps.get(block, []), plan, changes, price) for block in range(dense.depth)]


def _reason(block: int, steps: list[StepPlan], plan: ModelPlan, changes: Changes, price: Price) -> StepReason:
    step = steps[0] if steps else None
    others = {
        describe_step(other): alone
        for other in changes.steps(StepPlan(block=block))
        if describe_step(other) not in ("dense", describe_step(step)) and (alone := changes.alone(block, other))
    }
    least = min(others, key=lambda name: others[name], default=None)
    return StepReason(
        block=block,
        choice=describe_step(step),
        cost=_cost(block, plan, price) if steps else 0.0,
        alone=changes.alone(block, step),
        cheapest_other=None if least is None else (least, others[least]),
    )


def describe_step(step: StepPlan | None) -> str:
    """What became of a block, in words."""
    if step is None:
        return "dropped"
    plain = StepPlan(block=step.block)
    parts = [choice.describe() for choice, usual in zip(step.choices, plain.choices, strict=True) if choice != usual]
    return ", ".join(parts) or "dense"


def _cost(block: int, plan: ModelPlan, price: Price) -> float:
    """What the plan saves without the steps of a block."""
    whole = price(plan)
    left = tuple(step for step in plan.steps if step.block != block)
    without = price(plan.model_copy(update={"steps": left})) if left else 0.0
    return 0.0 if whole is None or without is None else max(0.0, whole - without)
