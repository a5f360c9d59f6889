"""Plans whose steps take, axis by axis, what any registered method would put there; most fit, many must be refused."""

from __future__ import annotations

from functools import cache

from hypothesis import strategies as st

from vitslim.errors import ConfigError
from vitslim.methods import planned, read_options
from vitslim.methods.support import method_forms
from vitslim.plans import Choice, ModelPlan, StepPlan, dense_plan

AXES = ("attention", "tokens", "mlp", "weights")


@cache
def formed_plans(dense: ModelPlan) -> list[ModelPlan]:
    """What each form of each method makes of a dense plan."""
    plans = [dense]
    for method, options in method_forms().values():
        try:
            plans.append(planned(method, read_options(method, options), dense))
        except ConfigError:
            continue  # not for this model
    return plans


@st.composite
def random_plans(draw: st.DrawFn, dense: ModelPlan) -> ModelPlan:
    """Any mixture of what the methods make: steps left out, each axis from another method, another image size."""
    plans = formed_plans(dense)
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
