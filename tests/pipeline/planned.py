"""A planner that measures nothing: it notes what it was asked, and drops a block."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from vitslim.bench import environment
from vitslim.files import write_json
from vitslim.methods import planned, read_method
from vitslim.pipeline import planning
from vitslim.pipeline.inputs import open_source
from vitslim.pipeline.planning import PlanOutline
from vitslim.planner import Damage, PlanReport, Rung, Trial
from vitslim.planner.result import Answer
from vitslim.plans import cost, plan_json
from vitslim.progress import ProgressCallback, silent
from vitslim.recipe import Recipe
from vitslim.trunk import plan_of

ENTRY = {"method": "depth", "keep": 3}


@dataclass
class Planner:
    """What ``vitslim.pipeline.planning`` was asked, in its place."""

    calls: list[dict[str, Any]] = field(default_factory=list)

    def plan(
        self,
        recipe: Recipe,
        out: Path,
        *,
        overwrite: bool = False,
        progress: ProgressCallback = silent,
        **asked: Any,
    ) -> PlanReport:
        self.calls.append({"recipe": recipe, "out": out, "overwrite": overwrite, **asked})
        found = report(recipe, **asked)
        write_json(out / "planner.json", found.model_dump(mode="json"))
        write_json(out / "plan.json", found.plan)
        return found

    def outline_plan(self, recipe: Recipe, **asked: Any) -> PlanOutline:
        named = ", ".join(budget.describe() for budget in asked["budgets"])
        return PlanOutline(lines=[f"{named} in {asked['runtime'].backend}"], seconds=300.0)


def report(recipe: Recipe, *, budgets: Any, runtime: Any, config: Any) -> PlanReport:
    method, options = read_method("depth", {"keep": ENTRY["keep"]})
    dense = plan_of(open_source(recipe))
    plan = planned(method, options, dense)
    damage = Damage(kl=0.5, agreement=0.75)
    trial = Trial(
        name="depth keep=3",
        kind="method",
        entries=[ENTRY],
        plan=plan_json(plan),
        macs=cost(plan).macs,
        parameters=cost(plan).parameters,
        predicted=0.77,
        measured=0.75,
        expected_kl=0.5,
        damage=damage,
        rungs=[Rung(steps=4, damage=Damage(kl=0.25, agreement=0.875))],
    )
    return PlanReport(
        model=recipe.model.name,
        data="" if recipe.data is None else recipe.data.source,
        runtime=runtime,
        config=config,
        dense_ms=1.0,
        images=8,
        dense=damage,
        prediction_error=None,
        trials=[trial],
        answers=[Answer(budget=budget, limit=0.8, found=1, trials=[0], chosen=0) for budget in budgets],
        recovery_steps=4,
        environment=environment(),
    )


def stand_in(monkeypatch: pytest.MonkeyPatch) -> Planner:
    """Have it asked wherever the planner is."""
    found = Planner()
    monkeypatch.setattr(planning, "plan", found.plan)
    monkeypatch.setattr(planning, "outline_plan", found.outline_plan)
    return found
