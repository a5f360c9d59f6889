"""Every reason why a plan cannot be built, from the data alone."""

from __future__ import annotations

from itertools import pairwise

from vitslim.arguments import checked
from vitslim.plans.place import Place, places
from vitslim.plans.plan import ModelPlan, StepPlan

_POOLS = ("token", "avg", "avgmax", "max")


@checked
def check(plan: ModelPlan) -> list[str]:
    """All refusals, each a sentence that names its step; empty where the plan can be built."""
    outline, sized = _outline_errors(plan), _with_known_blocks(plan)
    return outline if sized is None else outline + _readout_errors(sized) + _step_errors(sized)


def _step_errors(plan: ModelPlan) -> list[str]:
    found = places(plan)
    errors = [f"step {at.index}: {error}" for at in found for choice in at.step.choices for error in choice.errors(at)]
    return errors + _rule_errors(plan.steps) + _sorted_errors(found) + _row_errors(plan.steps) + _reuse_errors(found)


def _outline_errors(plan: ModelPlan) -> list[str]:
    errors: list[str] = []
    depth = plan.model.depth
    if not plan.steps:
        errors.append("no step is left; keep at least one block")
    for index, step in enumerate(plan.steps):
        if step.block >= depth:
            errors.append(f"step {index}: block {step.block} does not exist; choose from 0..{depth - 1}")
    errors += _order_errors(plan)
    errors += _size_errors(plan)
    errors += _width_errors(plan)
    return errors


def _order_errors(plan: ModelPlan) -> list[str]:
    return [
        f"step {index + 1}: block {after.block} follows block {before.block}; steps keep the order of the blocks"
        for index, (before, after) in enumerate(pairwise(plan.steps))
        if after.block < before.block < plan.model.depth
    ]


def _size_errors(plan: ModelPlan) -> list[str]:
    errors: list[str] = []
    for side, size, patch in zip(("height", "width"), plan.image_size, plan.model.patch, strict=True):
        if size < patch or size % patch:
            errors.append(f"image_size={plan.image_size}: the {side} has to be a multiple of the patch, {patch} pixels")
    return errors


def _width_errors(plan: ModelPlan) -> list[str]:
    if plan.width is None:
        return []
    if plan.width > plan.model.width:
        return [f"width={plan.width}: the model has {plan.model.width} channels; choose fewer"]
    if not all(block.others_per_channel for block in plan.model.blocks):
        return [f"no adapter narrows the stream of this {plan.model.family} to {plan.width} channels; leave its width"]
    return []


def _with_known_blocks(plan: ModelPlan) -> ModelPlan | None:
    """The plan, blocks that do not exist taken for some that no step names; None where steps have no sizes."""
    unknown = [index for index, step in enumerate(plan.steps) if step.block >= plan.model.depth]
    if not plan.steps or _order_errors(plan) or _size_errors(plan) or len(unknown) > len(plan.dropped):
        return None
    return plan.with_steps(
        {
            index: plan.steps[index].model_copy(update={"block": block})
            for index, block in zip(unknown, plan.dropped, strict=False)
        }
    )


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


def _rule_errors(steps: tuple[StepPlan, ...]) -> list[str]:
    """Two kinds of choices that both say which tokens take part."""
    rules = {step.tokens.kind: index for index, step in reversed(list(enumerate(steps))) if step.tokens.kind != "all"}
    if len(rules) < 2:
        return []
    first, second = sorted(rules.values())[:2]
    return [
        f"step {second} ({steps[second].tokens.describe()}) chooses tokens, as does step {first} "
        f"({steps[first].tokens.describe()}) in another way; one of them can rule"
    ]


def _sorted_errors(found: list[Place]) -> list[str]:
    """A step that cannot work on tokens which were sorted or merged."""
    errors: list[str] = []
    changed = next((at for at in found if at.in_mlp.is_sorted or at.in_mlp.is_merged), None)
    for at in found:
        attention, count = at.step.attention, at.in_attention
        if attention.whole_grid and (count.is_sorted or count.is_merged):
            why, state = "works on the whole grid", "the tokens are sorted"
        elif (attention.picks or attention.reads_z) and count.is_merged:
            why, state = "works on single patches", "the tokens are merged"
        else:
            continue
        assert changed is not None
        errors.append(
            f"step {at.index} ({attention.describe()}) {why}, but from step {changed.index} on "
            f"({changed.step.tokens.describe()}) {state}; keep such steps before it"
        )
    return errors


def _row_errors(steps: tuple[StepPlan, ...]) -> list[str]:
    """A selection by the class row of steps that compute no attention."""
    errors: list[str] = []
    for index, step in enumerate(steps):
        for read in step.tokens.rows_read(steps, index):
            if not (0 <= read < len(steps)) or not steps[read].attention.attends:
                before = steps[read].attention.describe() if 0 <= read < len(steps) else "there is none"
                where = "its own attention" if read == index else f"the attention of step {read}"
                errors.append(
                    f"step {index} ({step.tokens.describe()}) chooses patches by {where}, which "
                    f"computes none ({before}); let that step attend"
                )
    return errors


def _reuse_errors(found: list[Place]) -> list[str]:
    """A step that reads the attention output of tokens which have none, as they took no part in the step before."""
    errors: list[str] = []
    # Whether the output of the step before is known for every token: it took all, or handed on what it read for all.
    whole = True
    for at, before in zip(found, (None, *found), strict=False):
        attention = at.step.attention
        if attention.reads_z:
            if before is None or not (before.step.attention.attends or before.step.attention.reads_z):
                found_there = "there is none" if before is None else before.step.attention.describe()
                errors.append(
                    f"step {at.index} ({attention.describe()}) has no earlier attention output to reuse: the step "
                    f"before it computes none ({found_there})"
                )
            elif not whole and (attention.reads_grid or at.step.tokens.selects or before.in_mlp != before.in_attention):
                errors.append(
                    f"step {at.index} ({attention.describe()}) wants the attention output of tokens that took no part "
                    f"in step {before.index} ({before.step.tokens.describe()}); start the run of reusing steps right "
                    "after a step in which all tokens take part"
                )
        whole = at.in_attention.patches == at.plan.patches or (attention.reads_z and whole)
    return errors
