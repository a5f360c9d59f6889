"""Plans whose steps take, axis by axis, what any registered method would put there; most fit, many must be refused."""

from __future__ import annotations

from functools import cache

from hypothesis import strategies as st

from tests.variants import dense
from vitslim.errors import ConfigError
from vitslim.methods import planned, read_options
from vitslim.methods.support import method_forms
from vitslim.plans import Choice, ModelPlan, StepPlan
from vitslim.trunk import plan_of

AXES = ("attention", "tokens", "mlp", "weights")


@cache
def formed_plans(name: str) -> list[ModelPlan]:
    """What each form of each method makes of a variant."""
    first = plan_of(dense(name))
    plans = [first]
    for method, options in method_forms().values():
        try:
            plans.append(planned(method, read_options(method, options), first))
        except ConfigError:
            continue  # not for this model
    return plans


@st.composite
def random_plans(draw: st.DrawFn, plans: list[ModelPlan]) -> ModelPlan:
    """Any mixture of what the methods make: steps left out, each axis from another method, another image size."""
    base = draw(st.sampled_from(plans))
    changed: list[StepPlan] = []
    for step in base.steps:
        if draw(st.integers(0, 7)) == 0:
            continue
        choices: dict[str, Choice] = {}
        for axis in AXES:
            if draw(st.booleans()):
                other = draw(st.sampled_from(plans))
                found = [one for one in other.steps if one.block == step.block]
                if found:
                    choices[axis] = getattr(found[0], axis)
        changed.append(step.but(**choices))
    size = draw(st.sampled_from([plan.image_size for plan in plans]))
    return base.model_copy(update={"steps": tuple(changed), "image_size": size})
