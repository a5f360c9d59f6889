"""The planner on the tiny model and a budget of multiply-accumulates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.tiny import IMAGES, MODEL, QUIET
from vitslim.errors import ConfigError
from vitslim.pipeline import planning, run
from vitslim.pipeline.planning import plan
from vitslim.planner import Budget, RuntimeConfig
from vitslim.planner.config import PlannerConfig
from vitslim.plans import check, cost, dense_plan, read_plan_file
from vitslim.progress import Progress, ProgressCallback
from vitslim.recipe import Recipe, read_recipe

QUICK = PlannerConfig(fitted=16, held_out=16, measured=2, trials=2, recovery=1.0, shortest=1)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short trainings, one after the other, and few of them where nobody says how many."""

    def one_by_one(recipes: Mapping[str, Recipe], root: Path, *, overwrite: bool, progress: ProgressCallback) -> None:
        for name, one in recipes.items():
            run(one, root / name, overwrite=overwrite, progress=progress)

    monkeypatch.setattr(planning, "run_side_by_side", one_by_one)
    monkeypatch.setattr(planning, "PlannerConfig", lambda: QUICK)


def recipe(**changes: Any) -> Recipe:
    return read_recipe(
        {
            "model": MODEL,
            "data": {"source": IMAGES, "batch_size": 16},
            "analyze": {"images": 16, "replacement_images": 8},
            "distill": {"steps": 4, **QUIET},
            **changes,
        }
    )


def test_a_plan_within_the_budget_is_found_trained_and_written(tmp_path: Path) -> None:
    budget = Budget(macs=0.7 * dense_macs() / 1e9)
    report = plan(recipe(), tmp_path / "out", budgets=[budget], runtime=RuntimeConfig(), config=QUICK)
    found = read_plan_file(tmp_path / "out" / "plan.json")
    assert not check(found)
    assert cost(found).macs <= 0.7 * dense_macs()
    chosen = report.chosen
    assert chosen.rungs
    assert report.recovery_steps == sum(rung.steps for trial in report.trials for rung in trial.rungs)
    assert len({tuple(entry["method"] for entry in trial.entries) for trial in report.trials}) == len(report.trials)
    page = (tmp_path / "out" / "report.html").read_text()
    assert chosen.name in page

    stages: list[Progress] = []
    again = plan(
        recipe(), tmp_path / "out", budgets=[budget], runtime=RuntimeConfig(), config=QUICK, progress=stages.append
    )
    assert again.plan == report.plan
    assert not [one for one in stages if "distill" in one.stage and one.unit == "begun"]


def test_a_budget_that_nothing_reaches_is_refused(tmp_path: Path) -> None:
    budget = Budget(params=0.001)
    with pytest.raises(ConfigError, match=r"no composition of up to three methods .* of the dense model's parameters"):
        plan(recipe(), tmp_path / "out", budgets=[budget], runtime=RuntimeConfig(), config=QUICK)


def test_planning_needs_images(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs images"):
        plan(read_recipe({"model": MODEL}), tmp_path / "out", budgets=[Budget(macs=1.0)], runtime=RuntimeConfig())
    assert not (tmp_path / "out").exists()


def dense_macs() -> int:
    from vitslim.pipeline.inputs import open_source
    from vitslim.trunk import plan_of

    return cost(dense_plan(plan_of(open_source(recipe())).model)).macs
