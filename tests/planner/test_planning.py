"""The planner on the tiny model and a budget of multiply-accumulates."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.pipeline.tiny import IMAGES, MODEL, QUIET
from vitslim.errors import ConfigError
from vitslim.pipeline import run
from vitslim.pipeline.planning import outline_plan, plan, recovery, running
from vitslim.planner import Budget, DamageMeter, RuntimeConfig, search
from vitslim.planner.config import PlannerConfig
from vitslim.plans import ModelPlan, check, cost, dense_plan, read_plan_file
from vitslim.progress import Progress, ProgressCallback
from vitslim.recipe import Recipe, read_recipe

QUICK = PlannerConfig(fitted=16, held_out=16, measured=2, improved=1, trials=2, recovery=1.0, shortest=1)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short trainings, one after the other, and few of them where nobody says how many."""

    def one_by_one(
        recipes: Mapping[str, Recipe], root: Path, *, overwrite: bool, progress: ProgressCallback, ray: str | None
    ) -> None:
        for name, one in recipes.items():
            run(one, root / name, overwrite=overwrite, progress=progress)

    monkeypatch.setattr(recovery, "run_side_by_side", one_by_one)
    # Compositions have tests of their own.
    monkeypatch.setattr(search, "MOST_METHODS", 1)
    monkeypatch.setattr(running, "PlannerConfig", lambda: QUICK)


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
    assert {trial.kind for trial in report.trials} > {"steps"}
    assert [one.block for one in chosen.blocks] == list(range(len(chosen.blocks)))
    page = (tmp_path / "out" / "report.html").read_text()
    assert chosen.name in page

    stages: list[Progress] = []
    again = plan(
        recipe(), tmp_path / "out", budgets=[budget], runtime=RuntimeConfig(), config=QUICK, progress=stages.append
    )
    assert again.plan == report.plan
    assert not [one for one in stages if "distill" in one.stage and one.unit == "begun"]


def test_rates_for_each_step_are_among_the_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[search.Candidate] = []
    chosen = running.of_all_kinds
    monkeypatch.setattr(running, "of_all_kinds", lambda found, count: seen.extend(found) or chosen(found, count))
    limit = 0.7 * dense_macs()
    many = QUICK.model_copy(update={"recovery": 0.0, "improved": 0, "measured": 30})
    plan(recipe(), tmp_path / "out", budgets=[Budget(macs=limit / 1e9)], runtime=RuntimeConfig(), config=many)
    found = [one for one in seen if one.kind == "steps" and "rates" in (*one.entries, {})[0]]
    assert {one.methods[0] for one in found} == {"merge", "prune"}
    # All of the saving by tokens alone, or a part of it, and choices for each step bring the rest.
    shares = {one.entries[0]["rates"] for one in found}
    assert shares >= {0.33, 1.0}
    for one in found:
        assert not check(one.plan)
        assert cost(one.plan).macs <= limit
        assert one.kl < float("inf")


def test_what_damage_is_measured_on_is_trained_on_by_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserved: list[int] = []
    trained = recovery.run_side_by_side

    def noted(recipes: Mapping[str, Recipe], *args: Any, **options: Any) -> None:
        reserved.extend(one.data.reserved for one in recipes.values() if one.data is not None)
        trained(recipes, *args, **options)

    monkeypatch.setattr(recovery, "run_side_by_side", noted)
    budget = Budget(macs=0.7 * dense_macs() / 1e9)
    report = plan(recipe(), tmp_path / "out", budgets=[budget], runtime=RuntimeConfig(), config=QUICK)
    # A third of the 32 images at most, half of them for the starts.
    assert reserved
    assert set(reserved) == {10}
    assert report.images == 5


def test_an_interrupted_search_measures_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[object] = []
    measure = DamageMeter._measure
    monkeypatch.setattr(DamageMeter, "_measure", lambda self, plan: measured.append(plan) or measure(self, plan))
    trained = recovery.run_side_by_side

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    budget = Budget(macs=0.7 * dense_macs() / 1e9)
    monkeypatch.setattr(recovery, "run_side_by_side", stop)
    with pytest.raises(KeyboardInterrupt):
        plan(recipe(), tmp_path / "out", budgets=[budget], runtime=RuntimeConfig(), config=QUICK)
    assert measured
    measured.clear()
    monkeypatch.setattr(recovery, "run_side_by_side", trained)
    plan(recipe(), tmp_path / "out", budgets=[budget], runtime=RuntimeConfig(), config=QUICK)
    assert not measured


def test_several_budgets_each_get_a_plan_of_their_own(tmp_path: Path) -> None:
    budgets = [Budget(macs=share * dense_macs() / 1e9) for share in (0.8, 0.5)]
    report = plan(
        recipe(), tmp_path / "out", budgets=budgets, runtime=RuntimeConfig(),
        config=QUICK.model_copy(update={"recovery": 0.0}),
    )  # fmt: skip
    assert [answer.budget for answer in report.answers] == budgets
    costs = [cost(read_plan_file(path)).macs for path in sorted((tmp_path / "out").glob("plan-macs-*.json"))]
    assert len(costs) == 2
    assert min(costs) <= 0.5 * dense_macs() < max(costs) <= 0.8 * dense_macs()
    assert read_plan_file(tmp_path / "out" / "plan.json") == ModelPlan.model_validate(report.plan)
    expected = [one.expected_kl for one in report.outlook]
    assert expected == sorted(expected, reverse=True)


def test_a_budget_that_nothing_reaches_is_refused(tmp_path: Path) -> None:
    wanted = (
        r"--params 0\.001: no composition of methods is .*; the furthest that was found is 0\.0\d+ million parameters"
    )
    with pytest.raises(ConfigError, match=wanted):
        plan(recipe(), tmp_path / "out", budgets=[Budget(params=0.001)], runtime=RuntimeConfig(), config=QUICK)


def test_the_same_budget_twice_or_none_is_refused(tmp_path: Path) -> None:
    for budgets, message in (([], "needs a budget"), ([Budget(macs=1.0)] * 2, "--macs 1 is given twice")):
        with pytest.raises(ConfigError, match=message):
            plan(recipe(), tmp_path / "out", budgets=budgets, runtime=RuntimeConfig(), config=QUICK)
    assert not (tmp_path / "out").exists()


def test_too_few_images_are_refused_before_anything_is_measured(tmp_path: Path) -> None:
    few = recipe(data={"source": IMAGES.replace("train_per_class=8", "train_per_class=4"), "batch_size": 16})
    for ask in (lambda **asked: plan(few, tmp_path / "out", **asked), lambda **asked: outline_plan(few, **asked)):
        with pytest.raises(ConfigError, match="has 16 images; planning needs 32 at least"):
            ask(budgets=[Budget(macs=0.7 * dense_macs() / 1e9)], runtime=RuntimeConfig(), config=QUICK)


def test_the_outline_says_what_is_measured_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    of_time = outline_plan(recipe(), budgets=[Budget(speedup=1.5)], runtime=RuntimeConfig(), config=QUICK)
    of_macs = outline_plan(
        recipe(), budgets=[Budget(macs=0.7 * dense_macs() / 1e9)], runtime=RuntimeConfig(), config=QUICK
    )
    assert any("ort, fp32, batch 1" in line for line in of_time.lines)
    assert not any("ort" in line for line in of_macs.lines)
    share = "100% of the distillation's"
    assert f"trials: 2 plans for each budget, 4 optimiser steps in all ({share})" in of_macs.lines
    assert (of_macs.timed, of_macs.trials, of_macs.steps, of_macs.images) == (0, 2, 4, 5)
    assert of_time.timed > 2
    assert of_time.seconds > of_macs.seconds > 0
    with pytest.raises(ConfigError, match="is within the budget of 50 already"):
        outline_plan(recipe(), budgets=[Budget(params=50)], runtime=RuntimeConfig(), config=QUICK)
    assert not list(tmp_path.iterdir())
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files that no run of vitslim wrote"):
        outline_plan(
            recipe(), budgets=[Budget(speedup=1.5)], runtime=RuntimeConfig(), config=QUICK, out=tmp_path / "out"
        )


def test_the_fastest_plan_that_loses_little_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Times as if they were multiply-accumulates: no runtime is needed to choose among speedups.
    dense = dense_macs()
    times = SimpleNamespace(predict=lambda plan: cost(plan).macs / dense)
    monkeypatch.setattr(running._Planning, "_times", property(lambda _: (times, 1.0)))
    shares = property(lambda _: lambda plans, **__: [times.predict(plan) for plan in plans])
    monkeypatch.setattr(running._Planning, "_shares", shares)
    # What nothing reaches ends the ladder.
    monkeypatch.setattr(running, "LADDER", (1.2, 1.5, 900.0))
    quick = QUICK.model_copy(update={"recovery": 0.0, "improved": 0})
    asked: dict[str, Any] = {"runtime": RuntimeConfig(), "config": quick}
    report = plan(recipe(), tmp_path / "loose", budgets=[Budget(max_drop=100)], **asked)
    assert [one.budget.speedup for one in report.front] == [1.2, 1.5]
    assert report.answers[0].limit == pytest.approx(1 / 1.5)
    assert report.chosen.share <= 1 / 1.5
    drops = [100 * ((report.dense.top1 or 0) - (report.trials[one.chosen].last.top1 or 0)) for one in report.front]
    if min(drops) > 0:
        with pytest.raises(ConfigError, match=r"no plan loses .* points or fewer"):
            plan(recipe(), tmp_path / "tight", budgets=[Budget(max_drop=min(drops) / 2)], **asked)


def test_planning_needs_images(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs images"):
        plan(read_recipe({"model": MODEL}), tmp_path / "out", budgets=[Budget(macs=1.0)], runtime=RuntimeConfig())
    assert not (tmp_path / "out").exists()


def dense_macs() -> int:
    from vitslim.pipeline.inputs import open_source
    from vitslim.trunk import plan_of

    return cost(dense_plan(plan_of(open_source(recipe())).model)).macs
