"""A report of the planner with real plans, whose figures are drawn and not measured."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from tests.variants import dense
from vitslim.bench import environment
from vitslim.methods import METHODS, planned, read_method
from vitslim.methods.mlp import NarrowMlp
from vitslim.planner.budget import Budget
from vitslim.planner.config import PlannerConfig
from vitslim.planner.damage import Damage
from vitslim.planner.result import Answer, Outlook, PlanReport, Rung, StepReason, Trial
from vitslim.planner.times import RuntimeConfig
from vitslim.plans import ModelPlan, NoMlp, cost, plan_json
from vitslim.trunk import plan_of

DEPTH = 8
ENTRIES: dict[float, list[list[dict[str, Any]]]] = {
    1.5: [
        [{"method": "depth", "keep": 5}],
        [{"method": "mlp", "keep": 0.5, "widths": "even"}],
        [{"method": "resolution", "keep": 0.63}],
        [{"method": "evo_vit", "keep": 0.5}],
        [{"method": "depth", "keep": 7}, {"method": "mlp", "keep": 0.625, "widths": "even"}],
        [{"method": "mlp", "keep": 0.75, "widths": "even"}, {"method": "prune", "keep": 0.7}],
    ],
    2.0: [
        [{"method": "depth", "keep": 4}],
        [{"method": "resolution", "keep": 0.51}],
        [{"method": "depth", "keep": 5}, {"method": "merge", "keep": 0.7}],
        [{"method": "depth", "keep": 6}, {"method": "mlp", "keep": 0.5, "widths": "even"}],
        [{"method": "depth", "keep": 6}, {"method": "heads", "keep": 0.67}, {"method": "prune", "keep": 0.55}],
        [{"method": "mlp", "keep": 0.5, "widths": "even"}, {"method": "evo_vit", "keep": 0.5}],
    ],
}


def dense_plan_of(depth: int = DEPTH) -> ModelPlan:
    return plan_of(dense("vit_plain", depth=depth))


def two_budgets(*, labels: bool = True) -> PlanReport:
    """Two speedups with eight trials each: methods, several of them, a choice per block, one improved."""
    draw = random.Random(0)
    whole = dense_plan_of()
    trials: list[Trial] = []
    answers: list[Answer] = []
    for speedup, all_entries in ENTRIES.items():
        plans = [(_composed(whole, entries), entries) for entries in all_entries]
        steps, improved = _by_steps(whole, round(DEPTH / speedup))
        found = [
            _trial(draw, whole, plan, "methods" if len(own) > 1 else "method", own, 1 / speedup, labels=labels)
            for plan, own in plans
        ]
        found += [
            _trial(draw, whole, steps, "steps", [], 1 / speedup, labels=labels),
            _trial(draw, whole, improved, "improved", [], 1 / speedup, labels=labels),
        ]
        found = _halved(sorted(found, key=lambda one: one.damage.kl))
        indices = list(range(len(trials), len(trials) + len(found)))
        chosen = min(
            indices, key=lambda index: (-len(found[index - len(trials)].rungs), found[index - len(trials)].last.kl)
        )
        trials += found
        answers.append(
            Answer(budget=Budget(speedup=speedup), limit=1 / speedup, found=211, trials=indices, chosen=chosen)
        )
    return _report(
        trials,
        answers,
        labels=labels,
        outlook=[
            Outlook(limit=1 / gain, expected_kl=0.02 * (gain - 1) ** 2.2) for gain in (4.0, 3.0, 2.5, 2.0, 1.5, 1.25)
        ],
    )


def one_trial() -> PlanReport:
    """One plan for a budget of multiply-accumulates, without labels, training, or anything else that can be absent."""
    whole = dense_plan_of(4)
    plan = _composed(whole, [{"method": "mlp", "keep": 0.5, "widths": "even"}])
    trial = _trial(
        random.Random(0), whole, plan, "method", [{"method": "mlp", "keep": 0.5, "widths": "even"}], 1.0, labels=False
    )
    share = trial.macs / cost(whole).macs
    trial = trial.model_copy(update={"measured": None, "predicted": share, "rungs": [], "blocks": [], "figures": {}})
    answer = Answer(budget=Budget(macs=0.8 * cost(whole).macs / 1e9), limit=0.8, found=1, trials=[0], chosen=0)
    return _report([trial], [answer], labels=False).model_copy(
        update={"runtime": None, "dense_ms": None, "prediction_error": None, "recovery_steps": 0, "seconds": {}}
    )


def _report(trials: list[Trial], answers: list[Answer], *, labels: bool, outlook: Sequence[Outlook] = ()) -> PlanReport:
    return PlanReport(
        model="builtin",
        data="fractals",
        runtime=RuntimeConfig(),
        config=PlannerConfig(),
        dense_ms=4.812,
        images=512,
        dense=Damage(kl=0.0, agreement=1.0, loss=0.31 if labels else None, top1=0.9256 if labels else None),
        prediction_error=0.021,
        trials=trials,
        answers=answers,
        outlook=list(outlook),
        recovery_steps=sum(rung.steps for one in trials for rung in one.rungs),
        seconds={"time probes": 48.2, "damage of blocks": 211.0, "search": 3.4, "short trainings": 1260.0},
        environment=environment(),
    )


def _composed(whole: ModelPlan, entries: Sequence[Mapping[str, Any]]) -> ModelPlan:
    plan = whole
    for entry in entries:
        method, config = read_method(entry["method"], {name: one for name, one in entry.items() if name != "method"})
        plan = planned(METHODS.get(method.name), config, plan)
    return plan


def _by_steps(whole: ModelPlan, keep: int) -> tuple[ModelPlan, ModelPlan]:
    """A choice for each step, and the same with one MLP more taken out."""
    steps = [
        step.but(mlp=NarrowMlp(neurons=64 + 128 * index // len(whole.steps))) if index % 2 else step
        for index, step in enumerate(whole.steps)
    ]
    kept = whole.model_copy(update={"steps": tuple(steps[: keep // 2] + steps[DEPTH - keep // 2 - 1 :])})
    return kept, kept.with_steps({1: kept.steps[1].but(mlp=NoMlp())})


def _trial(
    draw: random.Random,
    whole: ModelPlan,
    plan: ModelPlan,
    kind: str,
    entries: list[dict[str, Any]],
    limit: float,
    *,
    labels: bool,
) -> Trial:
    costs, dense_macs = cost(plan), cost(whole).macs
    share = min(costs.macs / dense_macs, limit * draw.uniform(0.93, 1.0))
    start = draw.uniform(0.4, 1.6) * (1 - share)
    names = [" ".join([e["method"], *(f"{k}={v}" for k, v in e.items() if k != "method")]) for e in entries]
    found = {
        "steps": "a choice for each step: 3 blocks dropped, 2 MLPs narrow",
        "improved": "a choice for each step, improved in blocks 1 and 6: MLP none, MLP narrow (112)",
    }
    return Trial(
        name=" + ".join(names) or found[kind],
        kind=kind,
        entries=entries,
        plan=plan_json(plan),
        macs=costs.macs,
        parameters=costs.parameters,
        predicted=share * draw.uniform(0.97, 1.03),
        measured=share,
        expected_kl=start * draw.uniform(0.8, 1.5),
        damage=_damage(start, labels),
        figures={
            "CKA removed": start * draw.uniform(0.5, 1.5),
            "block influence removed": start * draw.uniform(0.2, 2),
        },
        blocks=_reasons(draw, whole, plan, dense_macs),
        rungs=[Rung(steps=60, damage=_damage(start * draw.uniform(0.15, 0.4), labels))],
    )


def _damage(kl: float, labels: bool) -> Damage:
    top1 = max(0.1, 0.9256 - 0.12 * kl)
    return Damage(
        kl=kl, agreement=max(0.1, 0.99 - 0.2 * kl), loss=0.31 + kl if labels else None, top1=top1 if labels else None
    )


def _reasons(draw: random.Random, whole: ModelPlan, plan: ModelPlan, dense_macs: int) -> list[StepReason]:
    steps = list(zip(plan.steps, cost(plan).steps, strict=True))
    reasons: list[StepReason] = []
    for block in range(whole.depth):
        own = [(step, of) for step, of in steps if step.block == block]
        words = "; ".join(
            ", ".join(one.describe() for one in step.choices if one.kind not in ("all", "own", "dense")) or "dense"
            for step, _ in own
        )
        is_dense = words == "dense"
        reasons.append(
            StepReason(
                block=block,
                choice=words or "dropped",
                cost=sum(of.macs for _, of in own) / dense_macs,
                alone=None if is_dense else draw.uniform(0.01, 0.1),
                cheapest_other=("mlp narrow 50 %", draw.uniform(0.01, 0.2)) if block % 3 else None,
            )
        )
    return reasons


def _halved(trials: list[Trial]) -> list[Trial]:
    """The better half trained for twice as long, as successive halving does."""
    order = sorted(range(len(trials)), key=lambda index: trials[index].last.kl)
    found = list(trials)
    for index in order[: len(order) // 2]:
        longer = Rung(steps=120, damage=_damage(0.7 * found[index].last.kl, found[index].last.top1 is not None))
        found[index] = found[index].model_copy(update={"rungs": [*found[index].rungs, longer]})
    return found
