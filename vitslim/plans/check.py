"""Every reason why a plan cannot be built, from the data alone."""

from __future__ import annotations

from itertools import pairwise

from vitslim.plans.place import places
from vitslim.plans.plan import ModelPlan, StepPlan


# What timm pools with that a mean of the patches can take the place of.
_POOLS = ("token", "avg", "avgmax", "max")


def check(plan: ModelPlan) -> list[str]:
    """All refusals, each a sentence that names its step; empty where the plan can be built."""
    outline = _outline_errors(plan)
    if outline:
        # Without its blocks a step has no sizes to speak of.
        return outline
    errors = [
        f"step {at.index}: {error}" for at in places(plan) for choice in at.step.choices for error in choice.errors(at)
    ]
    return (
        _readout_errors(plan)
        + errors
        + _sorted_errors(plan.steps)
        + _row_errors(plan.steps)
        + _reuse_errors(plan.steps)
    )


def _outline_errors(plan: ModelPlan) -> list[str]:
    errors: list[str] = []
    depth = plan.model.depth
    if not plan.steps:
        errors.append("no step is left; keep at least one block")
    for index, step in enumerate(plan.steps):
        if step.block >= depth:
            errors.append(f"step {index}: block {step.block} does not exist; choose from 0..{depth - 1}")
    blocks = [step.block for step in plan.steps]
    errors += [
        f"step {index + 1}: block {after} follows block {before}; steps keep the order of the blocks"
        for index, (before, after) in enumerate(pairwise(blocks))
        if after < before
    ]
    for side, size, patch in zip(("height", "width"), plan.image_size, plan.model.patch, strict=True):
        if size < patch or size % patch:
            errors.append(f"image_size={plan.image_size}: the {side} has to be a multiple of the patch, {patch} pixels")
    return errors


def _readout_errors(plan: ModelPlan) -> list[str]:
    model = plan.model
    if plan.readout == "model":
        return []
    if model.two_heads:
        return [
            "readout='mean': a distilled model has two heads, one for the class and one for the distillation token; "
            "neither can read the mean of the patches"
        ]
    if model.pools not in _POOLS:
        known = ", ".join(_POOLS)
        return [
            f"readout='mean': this {model.family} pools with {model.pools!r}; only {known} can be changed to the mean "
            "of the patches"
        ]
    return []


def _sorted_errors(steps: tuple[StepPlan, ...]) -> list[str]:
    first = next((index for index, step in enumerate(steps) if step.tokens.selects), len(steps))
    return [
        f"step {index} ({step.attention.describe()}) works on the whole grid, but from step {first} on "
        f"({steps[first].tokens.describe()}) the tokens are sorted; keep such steps before it"
        for index, step in enumerate(steps)
        if index >= first and step.attention.whole_grid
    ]


def _row_errors(steps: tuple[StepPlan, ...]) -> list[str]:
    """A selection by the class row of steps that compute no attention."""
    errors: list[str] = []
    for index, step in enumerate(steps):
        for read in step.tokens.rows_read(steps, index):
            if not (0 <= read < len(steps)) or not steps[read].attention.attends:
                before = steps[read].attention.describe() if 0 <= read < len(steps) else "there is none"
                where = "itself" if read == index else f"step {read}"
                errors.append(
                    f"step {index} ({step.tokens.describe()}) chooses patches by the attention of {where}, which "
                    f"computes none ({before}); let that step attend"
                )
    return errors


def _reuse_errors(steps: tuple[StepPlan, ...]) -> list[str]:
    """A step that reads the attention output of tokens which have none, as they took no part in the step before."""
    errors: list[str] = []
    # Whether the output of the step before is known for every token: it took all, or handed on what it read for all.
    whole = True
    for index, step in enumerate(steps):
        attention, tokens = step.attention, step.tokens
        same = tokens.reduces and not tokens.selects
        if attention.reads_z:
            before = steps[index - 1].attention if index else None
            if before is None or not (before.attends or before.reads_z):
                found = "there is none" if before is None else before.describe()
                errors.append(
                    f"step {index} ({attention.describe()}) has no earlier attention output to reuse: the step before "
                    f"it computes none ({found})"
                )
            elif not whole and (attention.reads_grid or not same):
                errors.append(
                    f"step {index} ({attention.describe()}) wants the attention output of tokens that took no part in "
                    f"step {index - 1} ({steps[index - 1].tokens.describe()}); start the run of reusing steps right "
                    "after a step in which all tokens take part"
                )
        whole = not tokens.reduces or (attention.reads_z and whole)
    return errors
