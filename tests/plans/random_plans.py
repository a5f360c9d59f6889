"""Plans whose steps take, axis by axis, what any registered method would put there; most fit, many must be refused."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from random import Random

from tests.variants import dense
from vitslim.errors import ConfigError
from vitslim.methods import planned, read_options
from vitslim.methods.support import method_forms
from vitslim.plans import Choice, ModelPlan, StepPlan, check
from vitslim.trunk import plan_of

AXES = ("attention", "tokens", "mlp", "weights")


@cache
def formed_plans(name: str) -> list[ModelPlan]:
    """What each form of each method makes of a variant."""
    return plans_from(plan_of(dense(name)))


def plans_from(first: ModelPlan) -> list[ModelPlan]:
    """The dense plan, and what each form of each method makes of it."""
    plans = [first]
    for method, options in method_forms().values():
        try:
            plans.append(planned(method, read_options(method, options), first))
        except ConfigError:
            continue  # not for this model
    return plans


def random_plan(name: str, seed: int, *, refused: bool = False) -> ModelPlan:
    """A plan for a variant which the checks accept or refuse.

    Drawn from a seed: choice by choice, hypothesis prefers the first methods, and the same one on all axes.
    """
    return next(plan for plan in mixtures(formed_plans(name), Random(seed)) if bool(check(plan)) == refused)


def mixtures(plans: list[ModelPlan], random: Random) -> Iterator[ModelPlan]:
    """Without end what the methods make, mixed: steps left out, each axis from another method, another image size."""
    while True:
        base = random.choice(plans)
        changed: list[StepPlan] = []
        for step in base.steps:
            if random.random() < 0.1:
                continue
            choices: dict[str, Choice] = {}
            for axis in AXES:
                if random.random() < 0.3:
                    other = random.choice(plans)
                    found = [one for one in other.steps if one.block == step.block]
                    if found:
                        choices[axis] = getattr(found[0], axis)
            changed.append(step.but(**choices))
        size = random.choice(plans).image_size
        yield base.model_copy(update={"steps": tuple(changed), "image_size": size})
