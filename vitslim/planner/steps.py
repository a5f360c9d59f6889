"""A choice for each step: what single changes do alone, the best sum of them, and improvement of the joint damage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from vitslim.errors import VitslimError
from vitslim.methods import METHODS, planned
from vitslim.planner.damage import DamageMeter
from vitslim.planner.search import Candidate, Price
from vitslim.plans import (
    AttentionChoice,
    Dense,
    DenseMlp,
    MlpChoice,
    ModelPlan,
    NoAttention,
    NoMlp,
    OwnWeights,
    StepPlan,
    check,
)
from vitslim.progress import Progress, ProgressCallback, silent

_STRENGTHS = 3
"""Of each method at most; in between the damage changes little."""
_GRID = 1000
"""Parts into which the saving is divided that a limit asks for; every choice is rounded down to one."""


@dataclass(frozen=True)
class Changes:
    """What a single block may become, and the divergence that each change causes alone.

    Args:
        attention, mlp: by block and choice, nats; the dense choice with none.
        dropped: by block.
    """

    attention: Mapping[tuple[int, AttentionChoice], float]
    mlp: Mapping[tuple[int, MlpChoice], float]
    dropped: Mapping[int, float]

    def alone(self, block: int, step: StepPlan | None) -> float | None:
        """The sum of what a step's changes do; ``None`` where one of them was not measured."""
        if step is None:
            return self.dropped.get(block)
        parts = [self.attention.get((block, step.attention)), self.mlp.get((block, step.mlp))]
        return None if None in parts else sum(part for part in parts if part is not None)

    def steps(self, step: StepPlan) -> Iterator[StepPlan | None]:
        """What may stand in the place of a step, its own rule on tokens being kept; ``None``: the block is dropped."""
        block = step.block
        attentions = [choice for at, choice in self.attention if at == block]
        mlps = [choice for at, choice in self.mlp if at == block]
        for attention, mlp in product(attentions, mlps):
            yield step.but(attention=attention, mlp=mlp)
        if block in self.dropped and not step.tokens.selects:
            yield None


def measure_changes(dense: ModelPlan, price: Price, meter: DamageMeter, progress: ProgressCallback = silent) -> Changes:
    """Measure every change of one attention, one MLP or one whole block that saves something."""
    whole = price(dense)
    assert whole is not None
    attention: dict[tuple[int, AttentionChoice], float] = {}
    mlp: dict[tuple[int, MlpChoice], float] = {}
    dropped: dict[int, float] = {}
    attentions, mlps = _choices(dense)
    done, total = 0, dense.depth * (len(attentions) + len(mlps) + 1)
    for index, step in enumerate(dense.steps):
        attention[index, Dense()] = mlp[index, DenseMlp()] = 0.0
        changed: list[tuple[AttentionChoice | MlpChoice | None, ModelPlan]] = [(None, _placed(dense, index, None))]
        changed += [(one, _placed(dense, index, step.but(attention=one))) for one in attentions]
        changed += [(one, _placed(dense, index, step.but(mlp=one))) for one in mlps]
        for choice, plan in changed:
            done += 1
            cost = None if check(plan) else price(plan)
            if cost is None or cost >= whole:
                continue
            kl = meter(plan).kl
            if choice is None:
                dropped[index] = kl
            elif isinstance(choice, AttentionChoice):
                attention[index, choice] = kl
            else:
                mlp[index, choice] = kl
            progress(Progress("damage of single changes", done, total, "plans", {"kl": kl}))
    return Changes(attention, mlp, dropped)


def best_steps(
    base: ModelPlan, changes: Changes, price: Price, limits: Sequence[float]
) -> list[tuple[ModelPlan, float] | None]:
    """The plan with the least sum of damages for each limit, exact up to the grid of prices; ``None`` for none.

    A dynamic program over the steps: D_l(s) = min over the choices c of step l of D_{l-1}(s - saving(c)) + damage(c).

    Args:
        base: what the choices change: the dense plan, or one with a rule on its tokens or another image size.
        limits: prices as shares of the dense model's.

    Returns:
        For each limit the plan and its sum, in nats.
    """
    whole = price(base)
    if whole is None or whole <= min(limits):
        return [None for _ in limits]
    unit = (whole - min(limits)) / _GRID
    options = [list(_options(base, index, changes, price, whole, unit)) for index in range(base.depth)]
    levels = np.arange(_GRID + 1)
    sums, taken = np.where(levels == 0, 0.0, np.inf), list[tuple[np.ndarray, np.ndarray]]()
    for choices in options:
        before = np.stack([_levels_before(sums, saved) for saved, _, _ in choices])
        harm = np.array([kl for _, kl, _ in choices])[:, None]
        table = np.where(before >= 0, sums[before] + harm, np.inf)
        best = table.argmin(0)
        taken.append((best, before[best, levels]))
        sums = table[best, levels]
    found: list[tuple[ModelPlan, float] | None] = []
    for limit in limits:
        at = int(np.ceil((whole - limit) / unit - 1e-9))
        reached = levels[at:][np.isfinite(sums[at:])] if at > 0 else np.array([], int)
        found.append(None)
        # Prices add up only nearly: a little more is asked for until the plan as a whole meets the limit.
        for level in reached[np.argsort(sums[reached], kind="stable")] if len(reached) else ():
            plan = _traced(base, options, taken, int(level))
            cost = None if check(plan) else price(plan)
            if cost is not None and cost <= limit:
                found[-1] = (plan, float(sums[level]))
                break
    return found


def improve(
    candidate: Candidate,
    changes: Changes,
    price: Price,
    limit: float,
    meter: DamageMeter,
    *,
    tries: int = 12,
    progress: ProgressCallback = silent,
) -> Candidate:
    """Exchange choices of single steps, alone or two at a time, while the joint damage falls and the limit is met."""
    best, tried = candidate, {candidate.plan.model_dump_json()}
    moves = _moves(best.plan, changes, price, limit)
    for done in range(tries):
        plan = next((one for one in moves if one.model_dump_json() not in tried), None)
        if plan is None:
            break
        tried.add(plan.model_dump_json())
        damage, cost = meter(plan), price(plan)
        if damage.kl < best.kl and cost is not None:
            best = replace(best, plan=plan, price=cost, damage=damage, is_improved=True)
            moves = _moves(best.plan, changes, price, limit)
        progress(Progress("improvement", done + 1, tries, "plans", {"kl": best.kl}))
    return best


def _choices(dense: ModelPlan) -> tuple[list[AttentionChoice], list[MlpChoice]]:
    """What methods do alike to all steps that they change, on one axis alone."""
    attentions: list[AttentionChoice] = [NoAttention()]
    mlps: list[MlpChoice] = [NoMlp()]
    for _, method in METHODS.items():
        strengths = list(method.strengths(dense))
        for options in strengths[:: max(1, -(-len(strengths) // _STRENGTHS))]:
            try:
                plan = planned(method, method.config(**options), dense)
            except VitslimError:
                continue
            changed = [step for step in plan.steps if not step.is_dense]
            is_plain = all(
                step == StepPlan(block=step.block, attention=step.attention, mlp=step.mlp) for step in changed
            )
            if plan.depth != dense.depth or plan.image_size != dense.image_size or not changed or not is_plain:
                continue
            attention, mlp = changed[0].attention, changed[0].mlp
            if attention not in (Dense(), *attentions) and all(step.attention == attention for step in changed):
                attentions.append(attention)
            if mlp not in (DenseMlp(), *mlps) and all(step.mlp == mlp for step in changed):
                mlps.append(mlp)
    return attentions, mlps


def _placed(plan: ModelPlan, index: int, step: StepPlan | None) -> ModelPlan:
    """The plan with another step at a place, or without it."""
    steps = (*plan.steps[:index], *((step,) if step else ()), *plan.steps[index + 1 :])
    return plan.model_copy(update={"steps": steps})


def _options(
    base: ModelPlan, index: int, changes: Changes, price: Price, whole: float, unit: float
) -> Iterator[tuple[int, float, StepPlan | None]]:
    """What may become of a step: units saved, damage alone, the step."""
    step = base.steps[index]
    yield 0, 0.0, step
    if step.attention != Dense() or step.mlp != DenseMlp() or step.weights != OwnWeights():
        return
    for other in changes.steps(step):
        alone = changes.alone(step.block, other)
        plan = _placed(base, index, other)
        if alone is None or other == step or check(plan):
            continue
        cost = price(plan)
        if cost is not None and cost < whole:
            yield int((whole - cost) / unit), alone, other


def _levels_before(sums: np.ndarray, saved: int) -> np.ndarray:
    """For each level the one from which saving so many units leads there, -1 for none; beyond the end is the end."""
    last = len(sums) - 1
    before = np.arange(last + 1) - saved
    near = max(0, last - saved)
    before[-1] = near + int(sums[near:].argmin())
    return np.maximum(before, -1)


def _traced(
    base: ModelPlan,
    options: Sequence[Sequence[tuple[int, float, StepPlan | None]]],
    taken: Sequence[tuple[np.ndarray, np.ndarray]],
    level: int,
) -> ModelPlan:
    """The plan that leads to a level of the last table."""
    steps: list[StepPlan] = []
    for index in range(len(options) - 1, -1, -1):
        option, before = taken[index]
        step = options[index][int(option[level])][2]
        if step is not None:
            steps.append(step)
        level = int(before[level])
    return base.model_copy(update={"steps": tuple(reversed(steps))})


def _moves(plan: ModelPlan, changes: Changes, price: Price, limit: float) -> Iterator[ModelPlan]:
    """Plans that differ in one block or two and meet the limit, the most promising first."""
    now: dict[int, StepPlan | None] = {step.block: step for step in plan.steps}
    whole = price(plan)
    if whole is None or len(now) != plan.depth or any(step.weights != OwnWeights() for step in plan.steps):
        return
    now |= dict.fromkeys(plan.dropped)
    single: list[tuple[float, float, int, StepPlan | None]] = []
    for block, step in now.items():
        harm = changes.alone(block, step)
        for other in changes.steps(step or StepPlan(block=block)) if harm is not None else ():
            if step is not None and other is not None and step.attention != other.attention and step.mlp != other.mlp:
                continue  # one respect at a time
            alone, cost = changes.alone(block, other), None if other == step else _price(plan, {block: other}, price)
            if alone is not None and harm is not None and cost is not None:
                single.append((alone - harm, cost - whole, block, other))
    found = [(harm, {block: step}) for harm, more, block, step in single if whole + more <= limit]
    for (harm, more, block, step), (harm2, more2, block2, step2) in product(single, single):
        # One block becomes milder, another stronger in its place.
        if block != block2 and more > 0 > more2 and whole + more + more2 <= limit:
            found.append((harm + harm2, {block: step, block2: step2}))
    for _, moves in sorted(found, key=lambda one: one[0]):
        cost = _price(plan, moves, price)
        if cost is not None and cost <= limit:
            yield _exchanged(plan, moves)


def _exchanged(plan: ModelPlan, moves: Mapping[int, StepPlan | None]) -> ModelPlan:
    """The plan, no block of which comes twice, with other steps for some blocks."""
    steps: dict[int, StepPlan | None] = {**{step.block: step for step in plan.steps}, **moves}
    kept = [step for _, step in sorted(steps.items()) if step is not None]
    return plan.model_copy(update={"steps": tuple(kept)})


def _price(plan: ModelPlan, moves: Mapping[int, StepPlan | None], price: Price) -> float | None:
    changed = _exchanged(plan, moves)
    return None if check(changed) else price(changed)
