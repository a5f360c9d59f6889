"""The benchmark of the planner: presets, what competes at a target, what the next call does."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.pipeline.tiny import IMAGES, MODEL
from vitslim.errors import ConfigError
from vitslim.pipeline import run
from vitslim.pipeline.inputs import open_source
from vitslim.pipeline.planner_bench import PlannerBench, read_preset, subject, task, ways
from vitslim.pipeline.planner_bench.strengths import Strengths
from vitslim.planner import RuntimeConfig
from vitslim.planner.comparison import FINE_TUNED, PLANNER, SIBLING, PlannerBenchReport, Student
from vitslim.plans import ModelPlan, cost, plan_json
from vitslim.recipe import Recipe, read_recipe
from vitslim.report.drawing import Picture
from vitslim.report.planner_bench import bench_lines, bench_markdown, bench_picture, bench_tables, foretold_table
from vitslim.trunk import plan_of

PRESET = f"""
runtimes: [{{backend: torch, batch: 1}}]
speedups: [1.25, 50]
seeds: [0, 1]
planner: {{trials: 2}}
close: 100
tasks:
  tiny:
    model: {MODEL!r}
    data: {{source: {IMAGES!r}, batch_size: 16}}
    distill: {{steps: 2, tensorboard: false}}
    siblings: [{{depth: 2}}]
rivals:
  depth: {{convert: [{{method: depth}}], option: keep, values: [3, 2]}}
  mlp: {{convert: [{{method: mlp}}], option: keep, values: [0.95]}}
"""


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_shipped_presets_can_be_read(name: str) -> None:
    preset = read_preset(name)
    assert preset.tasks
    assert all(rival.entries() for rival in preset.rivals.values())
    assert preset.speedups == (1.5, 2.0, 3.0)


def test_a_faulty_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown preset 'tpu'; wanted cpu, gpu or a YAML file"):
        PlannerBench(tmp_path, preset="tpu")
    with pytest.raises(ConfigError, match="unknown key 'seed'"):
        PlannerBench(tmp_path, overrides=["seed=1"])


def test_a_rival_competes_at_its_mildest_strength_that_is_fast_enough() -> None:
    dense = plan_of(open_source(read_recipe({"model": MODEL})))
    plans = [dense.model_copy(update={"steps": dense.steps[:left]}) for left in (4, 3, 2, 1)]
    times: dict[int, float | None] = {4: 0.9, 3: 0.7, 2: 0.52, 1: 0.4}
    asked: list[int] = []

    def measure(some: Any) -> list[float | None]:
        asked.extend(plan.depth for plan in some)
        return [times[plan.depth] for plan in some]

    # Predictions that are off by one strength, either way.
    for predicted in ({4: 0.8, 3: 0.49, 2: 0.4, 1: 0.3}, {4: 1.0, 3: 0.9, 2: 0.7, 1: 0.45}):
        asked.clear()
        found = Strengths(plans, lambda plan, known=predicted: known[plan.depth], measure)
        assert found.mildest(0.55) == 2
        assert found.mildest(0.3) is None
        assert len(asked) == len(set(asked))


find_plans = ways.Ways._find_plans


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PlannerBench:
    """The tiny task; multiply-accumulates stand for times, and the planner drops a block."""

    def share_of(plan: Any) -> float:
        return cost(plan).macs / cost(dense).macs

    def one_by_one(recipes: Mapping[str, Recipe], root: Path, **options: Any) -> None:
        for name, one in recipes.items():
            run(one, root / name, overwrite=True)

    dense = plan_of(open_source(read_recipe({"model": MODEL})))
    dropped = dense.model_copy(update={"steps": dense.steps[:3]})

    def found(self: Any, runtime: RuntimeConfig) -> dict[str, Any]:
        target = self._target(runtime, 1.25, PLANNER)
        way = {**target, "entries": [], "plan": plan_json(dropped), "share": share_of(dropped)}
        search = {"seconds": {"damage": 60.0}, "recovery_steps": 4, "prediction_error": 0.01}
        return {"reached": [way], "planning": {**target, **search}}

    monkeypatch.setattr(task, "run_side_by_side", one_by_one)
    monkeypatch.setattr(ways.Ways, "_find_plans", found)
    monkeypatch.setattr(subject.Subject, "times", lambda *_: SimpleNamespace(predict=share_of))
    monkeypatch.setattr(subject.Subject, "shares", lambda *_: lambda plans, **__: [share_of(plan) for plan in plans])
    halves = lambda models, _: ({name: 0.5 for name in models if name != "dense"}, {}, 1.0)  # noqa: E731
    monkeypatch.setattr(ways, "measure_models", halves)
    path = tmp_path / "preset.yaml"
    path.write_text(PRESET)
    return PlannerBench(tmp_path / "out", preset=str(path))


def test_a_speedup_that_no_plan_reaches_is_told_and_the_others_are_compared(
    bench: PlannerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[float | None]] = []

    def found(*_: Any, budgets: Any, **__: Any) -> Any:
        asked.append([one.speedup for one in budgets])
        if len(budgets) > 1:
            raise ConfigError("out of reach")
        return SimpleNamespace(answers=[], trials=[], model_dump=lambda **_: {"seconds": {}})

    monkeypatch.setattr(ways.Ways, "_find_plans", find_plans)
    monkeypatch.setattr(ways, "find_plans", found)
    report = bench.run()
    assert asked == [[1.25, 50.0], [1.25]]
    assert [one["speedup"] for one in report.unreached if one["way"] == PLANNER] == [50.0]
    assert {one.way for one in report.students} == {"depth", SIBLING}


def test_all_ways_are_trained_with_every_seed_and_stand_in_one_table(bench: PlannerBench) -> None:
    report = bench.run(command="vitslim bench planner")
    students = {one.way: one for one in report.students}
    assert set(students) == {"depth", PLANNER, SIBLING}
    assert all(set(one.top1) == {"0", "1"} for one in report.students)
    assert set(report.finetuned["tiny"]) == {"0", "1"}
    # One dropped block of four is 1.25x and more by multiply-accumulates; the planner's plan is trained once for both.
    trained = list((bench.path.parent / "tiny" / "seed-0").iterdir())
    assert len(trained) == len({one.digest for one in report.students}) + 1
    assert {(one["way"], one["speedup"]) for one in report.unreached} == {
        (way, speedup) for way in ("depth", "mlp", SIBLING) for speedup in (1.25, 50.0)
    } - {("depth", 1.25), (SIBLING, 1.25)}
    assert not report.left
    (title,) = bench_tables(report)
    header, first, *_ = bench_tables(report)[title]
    assert header == ["way", "1.25x"]
    assert first[0] == PLANNER
    assert PlannerBenchReport.model_validate(report.model_dump(mode="json")) == report
    assert "| planner |" in bench_markdown(report)
    assert "4 steps of short trainings" in "\n".join(bench_lines(report))
    moved = [{**report.planning[0], "cpu": "another processor"}]
    lines = "\n".join(bench_lines(report.model_copy(update={"planning": moved})))
    assert "on another processor took" in lines
    assert f"another processor and {report.environment['cpu']}, each table on the one that its search names" in lines
    assert "Speeds are ratios of 10th percentiles" in "\n".join(bench_lines(report))
    assert "Speeds" not in "\n".join(bench_lines(report.model_copy(update={"timed": None})))
    assert ">planner 1.25x<" in bench_picture(report, "tiny", "torch-b1-fp32").svg


def test_what_loses_far_more_than_the_planner_does_not_press_the_picture(bench: PlannerBench) -> None:
    report = bench.run()

    def drawn(accuracy: Mapping[str, float]) -> Picture:
        students = [one.model_copy(update={"top1": {"0": accuracy[one.way]}}) for one in report.students]
        made = report.model_copy(update={"students": students, "finetuned": {"tiny": {"0": 0.9}}})
        return bench_picture(made, "tiny", "torch-b1-fp32")

    assert not drawn({PLANNER: 0.8, "depth": 0.75, SIBLING: 0.7}).note
    assert ">dense<" in drawn({PLANNER: 0.95, "depth": 0.75, SIBLING: 0.7}).svg  # a student may be ahead of it
    picture = drawn({PLANNER: 0.8, "depth": 0.75, SIBLING: 0.2})
    assert picture.note == "1 more lie below."
    assert ">depth 1.25x<" in picture.svg
    assert f">{SIBLING}" not in picture.svg


def test_figures_before_training_are_held_against_what_came_of_it(
    bench: PlannerBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    wider = bench.preset.rivals["mlp"].model_copy(update={"values": (0.5,)})
    bench.preset = bench.preset.model_copy(update={"rivals": {**bench.preset.rivals, "mlp": wider}, "seeds": (0,)})
    # The fewer multiply-accumulates, the worse.
    monkeypatch.setattr(task.TaskRun, "_top1", lambda self, way, seed: 0.1 if way.plan is None else _kept(way.plan))
    found = bench.run().foretold["tiny"]
    assert found["fewer MACs"] == pytest.approx(1.0)
    assert "KL at the start" in found
    (cells,) = foretold_table(bench.run())
    assert ["fewer MACs", "+1.00"] in cells


def _kept(plan: dict[str, Any]) -> float:
    return cost(ModelPlan.model_validate(plan)).macs / 1e9


def test_the_next_call_does_what_is_left(bench: PlannerBench, monkeypatch: pytest.MonkeyPatch) -> None:
    first = bench.run(minutes=0.0)
    assert first.students == []
    assert any("torch-b1-fp32" in one for one in first.left)
    second = bench.run()
    assert not second.left
    monkeypatch.setattr(task, "run_side_by_side", lambda *_, **__: pytest.fail("everything is trained"))
    assert bench.run() == second.model_copy(update={"environment": bench.run().environment})


def test_other_seeds_train_what_may_be_the_best(bench: PlannerBench) -> None:
    bench.preset = bench.preset.model_copy(update={"close": 0.0})
    report = bench.run()
    best = max(one.top1["0"] for one in report.students)
    for one in report.students:
        assert ("1" in one.top1) == (one.top1["0"] == best or one.way == PLANNER or shares_training(one, report))
    assert FINE_TUNED not in {one.way for one in report.students}


def shares_training(one: Student, report: PlannerBenchReport) -> bool:
    return any(other.digest == one.digest and other.way == PLANNER for other in report.students)
