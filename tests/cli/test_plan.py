"""plan, and convert with a budget. What the planner finds itself is tested in tests/planner."""

import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import TINY, Command
from tests.pipeline.planned import Planner
from tests.pipeline.tiny import IMAGES, QUIET
from vitslim.files import read_json
from vitslim.names import BUILTIN
from vitslim.pipeline import runtimes
from vitslim.planner import Budget, PlanReport, RuntimeConfig
from vitslim.plans import check, cost, dense_plan, read_plan_file

TRAINED = {**QUIET, "steps": 2}
SHORT = tuple(word for key, value in TRAINED.items() for word in ("--set", f"distill.{key}={str(value).lower()}"))
FEW = tuple(
    word
    for setting in ("fitted=16", "held_out=16", "measured=2", "improved=0", "trials=1", "recovery=0")
    for word in ("--set", f"planner.config.{setting}")
)
"""What keeps the planner itself short: a handful of plans, none of them trained."""
TWO_BLOCKS = ("--set", "model.options.depth=2")
"""Compositions of methods are many, each priced under the shape checks of the tests."""
ANALYSIS = ("--set", "analyze.images=16", "--set", "analyze.replacement_images=8")


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VITSLIM_CACHE", str(tmp_path / "cache"))


# --- plan ------------------------------------------------------------------------------------------------------------


def test_the_plan_of_a_budget_is_found_and_written(tmp_path: Path, vitslim: Command) -> None:
    words = ("--data", IMAGES, "--batch-size", 16, "--params", 0.06, *TINY, *TWO_BLOCKS, *SHORT, *FEW, *ANALYSIS)
    outcome = vitslim("plan", BUILTIN, *words, "--out", tmp_path / "out", "--json")
    assert outcome.code == 0, outcome.err
    found = read_plan_file(tmp_path / "out" / "plan.json")
    assert not check(found)
    assert cost(found).parameters <= 0.06e6 < cost(dense_plan(found.model)).parameters
    document = outcome.document
    assert document.pop("out") == str(tmp_path / "out")
    assert PlanReport.model_validate(document).plan == read_json(tmp_path / "out" / "plan.json")


def test_every_budget_and_option_reaches_the_planner(tmp_path: Path, vitslim: Command, planner: Planner) -> None:
    budgets = ("--speedup", 1.5, "--macs", 0.001, "--speedup", 2, "--latency-ms", 3)
    target = ("--target", "torch", "--batch", 8, "--threads", 2, "--precision", "bf16")
    trials = ("--trials", 3, "--recovery", 0.5, "--ray", "auto", "--seed", 4)
    words = (*budgets, "--params", 0.05, "--file-mib", 0.2, *target, *trials, "--epochs", 2)
    outcome = vitslim("plan", BUILTIN, "--data", IMAGES, "--out", tmp_path / "out", *words, *TINY)
    assert outcome.code == 0, outcome.err
    (call,) = planner.calls
    assert call["budgets"] == (
        *(Budget(speedup=1.5), Budget(speedup=2), Budget(latency_ms=3), Budget(macs=0.001)),
        *(Budget(params=0.05), Budget(file_mib=0.2)),
    )
    assert call["runtime"] == RuntimeConfig(backend="torch", batch=8, threads=2, precision="bf16")
    assert (call["config"].trials, call["config"].recovery, call["config"].ray) == (3, 0.5, "auto")
    assert (call["recipe"].distill.epochs, call["recipe"].seed) == (2.0, 4)
    (row,) = [line for line in outcome.out.splitlines() if "depth keep=3" in line]
    assert "75%" in row
    assert all(budget.describe() in outcome.out for budget in call["budgets"])
    assert f"--plan {tmp_path / 'out'}/plan.json" in outcome.err


def test_without_a_budget_all_of_them_are_named(tmp_path: Path, vitslim: Command) -> None:
    outcome = vitslim("plan", BUILTIN, "--data", IMAGES, "--out", tmp_path / "out")
    assert outcome.code == 2
    named = "--speedup 1.5, --latency-ms 40, --macs 2.9, --params 15, --file-mib 40, --max-drop 1"
    assert outcome.error == f"name a budget: {named}"


BAD_BUDGETS: dict[str, tuple[tuple[Any, ...], str]] = {
    "slower": (("--speedup", 0.5), "--speedup 0.5: wanted a number above 1"),
    "nothing lost": (("--max-drop", 0), "--max-drop 0: wanted a number above 0"),
    "twice": (("--speedup", 2, "--macs", 1, "--speedup", 2.0), "--speedup 2 given more than once"),
    "a drop and more": (("--max-drop", 1, "--speedup", 2), "--max-drop 1 tries several speedups by itself; give it"),
    "no number": (("--latency-ms", "nan"), "--latency-ms nan: wanted a number above 0"),
    "no int8": (("--speedup", 2, "--target", "torch", "--precision", "int8"), "target torch has no int8; wanted fp32"),
    "no such target": (("--speedup", 2, "--target", "tflite"), "unknown backend 'tflite'; known: "),
    "misspelt target": (("--speedup", 2, "--target", "tensort"), "did you mean 'tensorrt'?"),
    "target on a GPU": (("--speedup", 2, "--target", "rtx"), "target rtx runs on a GPU; plan for it there (--device"),
    "precision": (("--speedup", 2, "--precision", "fp8"), "Input should be 'fp32', 'fp16', 'bf16' or 'int8'"),
    "trials": (("--speedup", 2, "--set", "planner.config.held_out=2"), "planner.config.held_out=2: "),
}


@pytest.mark.parametrize("command", ["plan", "convert"])
@pytest.mark.parametrize("case", BAD_BUDGETS)
def test_a_budget_that_cannot_be_planned_for_is_one_line_and_writes_nothing(
    case: str, command: str, tmp_path: Path, vitslim: Command, planner: Planner
) -> None:
    words, message = BAD_BUDGETS[case]
    outcome = vitslim(command, BUILTIN, "--data", IMAGES, "--out", tmp_path / "out", *TINY, *words)
    assert outcome.code == 2
    assert message in outcome.error
    assert not planner.calls
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["plan", "convert"])
def test_a_target_that_is_not_installed_has_its_own_exit_code(
    command: str, tmp_path: Path, vitslim: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(name: str) -> Any:
        return None if name == "onnxruntime" else find_spec(name)

    monkeypatch.setattr(runtimes, "find_spec", without)
    words = ("--data", IMAGES, "--out", tmp_path / "out", "--speedup", 2, "--target", "ort")
    outcome = vitslim(command, BUILTIN, *words, *TINY)
    assert outcome.code == 3
    assert outcome.error == "target ort is not installed here, it needs onnxruntime: pip install 'vitslim[onnx]'"
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_is_measured_and_how_long_it_takes(
    tmp_path: Path, vitslim: Command, planner: Planner
) -> None:
    words = ("--data", IMAGES, "--out", tmp_path / "out", "--speedup", 2, "--dry-run", *TINY)
    outcome = vitslim("plan", BUILTIN, *words)
    assert outcome.code == 0, outcome.err
    assert outcome.err.splitlines() == ["--speedup 2 in ort", "about 5 min; nothing is written"]
    document = vitslim("plan", BUILTIN, *words, "--json").document
    assert document.items() >= {"lines": ["--speedup 2 in ort"], "seconds": 300.0}.items()
    assert vitslim("convert", BUILTIN, *words, "--json").document["planning"] == document
    dry = vitslim("convert", BUILTIN, *words)
    assert "planner   the plan is found first: --speedup 2 in ort (about 5 min)" in dry.err
    assert not planner.calls
    assert not (tmp_path / "out").exists()


# --- convert ---------------------------------------------------------------------------------------------------------


def test_a_budget_converts_trains_and_times_in_one_command(tmp_path: Path, vitslim: Command) -> None:
    words = ("--data", IMAGES, "--batch-size", 16, "--params", 0.06, "--target", "torch", *TINY, *TWO_BLOCKS)
    less = ("warm_start.steps=0", "evaluate=false", "report=false", "bench.rounds=5", "bench.warmup=1")
    settings = tuple(word for one in less for word in ("--set", one))
    command = ("convert", BUILTIN, "--out", tmp_path / "out", *words, *SHORT, *FEW, *ANALYSIS, *settings)
    outcome = vitslim(*command)
    assert outcome.code == 0, outcome.err
    out = tmp_path / "out"
    assert read_plan_file(out / "planner" / "plan.json") == read_plan_file(out / "plan.json")
    assert cost(read_plan_file(out / "plan.json")).parameters <= 0.06e6
    assert {(row["model"], row["backend"], row["batch"]) for row in read_json(out / "bench.json")["rows"]} == {
        ("dense", "torch", 1),
        ("student", "torch", 1),
    }
    again = vitslim(*command)
    assert "begun" not in again.err
    assert "--params 0.06" in again.out


@pytest.mark.parametrize(
    ("words", "runtime", "precisions"),
    [
        ((), RuntimeConfig(backend="ort"), ["fp32"]),
        (
            ("--target", "ort", "--batch", 8, "--threads", 2, "--precision", "fp16"),
            RuntimeConfig(batch=8, threads=2, precision="fp16"),
            ["fp16"],
        ),
        (("--target", "compiled"), RuntimeConfig(backend="compiled"), None),
        (("--target", "ort", "--precision", "int8"), RuntimeConfig(precision="int8"), ["fp32"]),
    ],
)
def test_a_budget_brings_the_export_and_the_measurement_of_its_target(
    words: tuple[Any, ...],
    runtime: RuntimeConfig,
    precisions: list[str] | None,
    tmp_path: Path,
    vitslim: Command,
    planner: Planner,
) -> None:
    out = tmp_path / "out"
    start = ("convert", BUILTIN, *TINY, "--data", IMAGES, "--out", out, "--speedup", 2, "--dry-run", "--json")
    recipe = vitslim(*start, *words).document["recipe"]
    assert RuntimeConfig.model_validate(recipe["planner"]["runtime"]) == runtime
    assert (recipe["export"] and recipe["export"]["precisions"]) == precisions
    bench = {"backends": [runtime.backend], "precisions": [runtime.precision], "batches": [runtime.batch]}
    assert recipe["bench"].items() >= {**bench, "threads": runtime.threads, "device": "cpu"}.items()
    bare = vitslim(*start, *words, "--set", "export=null", "--set", "bench=null").document["recipe"]
    assert (bare["export"], bare["bench"]) == (None, None)


def test_a_budget_stands_in_place_of_methods_and_plans(student: Path, tmp_path: Path, vitslim: Command) -> None:
    words = ("convert", BUILTIN, "--speedup", "1.5", "--max-drop", "1", "--out", tmp_path / "out", *TINY)
    both = "--speedup 1.5 --max-drop 1: "
    assert both + "a plan for a budget is found on images of the task; add --data" == vitslim(*words).error
    for more in (("--method", "depth"), ("--plan", student / "plan.json")):
        error = vitslim(*words, "--data", IMAGES, *more).error
        assert error == f"{both}a budget stands in place of {more[0]}; leave one of them out"
    assert not (tmp_path / "out").exists()


def test_a_recipe_with_a_budget_is_run(recipe_file: Path, tmp_path: Path, vitslim: Command, planner: Planner) -> None:
    asked = ("convert=[]", "planner.budgets={speedup: 2}", "planner.runtime.backend=torch", "analyze=null")
    words = tuple(word for one in asked for word in ("--set", one))
    outcome = vitslim("run", recipe_file, "--out", tmp_path / "out", *words, "--set", "distill.steps=2")
    assert outcome.code == 0, outcome.err
    assert planner.calls[0]["budgets"] == (Budget(speedup=2),)
    assert "the plan is found first: --speedup 2 in torch" in outcome.err
    assert "depth keep=3" in outcome.out


def test_the_command_that_plan_names_makes_the_student(tmp_path: Path, vitslim: Command) -> None:
    out = tmp_path / "a plan"
    words = ("--data", IMAGES, "--batch-size", 16, "--params", 0.06, "--target", "torch", *TINY, *TWO_BLOCKS)
    outcome = vitslim("plan", BUILTIN, "--out", out, *words, *SHORT, *FEW, *ANALYSIS)
    assert outcome.code == 0, outcome.err
    command = shlex.split(outcome.err.rpartition("the student: vitslim ")[2])
    assert command[-2:] == ["--out", "DIR"]
    recipe = vitslim(*command[:-1], tmp_path / "student", "--dry-run", "--json").document["recipe"]
    assert recipe["plan"] == str(out / "plan.json")
    assert recipe["bench"]["backends"] == ["torch"]
    assert recipe["export"] is None
    report = vitslim(*command[:-1], tmp_path / "student", "--plan", out / "planner.json")
    assert report.error.endswith("planner.json is the report of a search; its plan is plan.json beside it")


def test_what_a_student_is_timed_in_is_taken_or_refused(tmp_path: Path, vitslim: Command) -> None:
    words = ("convert", BUILTIN, "--method", "depth", "-O", "keep=3", "--out", tmp_path / "out", *TINY, "--dry-run")
    assert "--target need images; add --data" in vitslim(*words, "--target", "torch").error
    for more in (("--threads", 2), ("--data", IMAGES, "--precision", "bf16")):
        assert "--batch, --threads and --precision say how" in vitslim(*words, *more).error
    recipe = vitslim(*words, "--data", IMAGES, "--target", "torch", "--threads", 2, "--json").document["recipe"]
    assert (recipe["bench"]["backends"], recipe["bench"]["threads"]) == (["torch"], 2)
