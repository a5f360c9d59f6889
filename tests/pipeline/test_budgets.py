"""A run whose plan is found first, and the search as Python asks for it; the planner notes what it is asked."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

import vitslim
from tests.pipeline.planned import Planner
from tests.pipeline.tiny import IMAGES, MODEL, QUIET
from vitslim import checkpoint
from vitslim.data import DataConfig
from vitslim.errors import ConfigError, MissingDependencyError, VitslimError
from vitslim.files import read_json
from vitslim.pipeline import run, running, runtimes
from vitslim.pipeline.checks import check
from vitslim.pipeline.outline import Outline
from vitslim.planner import Budget, RuntimeConfig
from vitslim.planner.config import PlannerConfig
from vitslim.plans import read_plan, read_plan_file
from vitslim.progress import Progress
from vitslim.recipe import Recipe, read_recipe
from vitslim.train import DistillConfig
from vitslim.trunk import plan_of


def planned_recipe(budgets: Sequence[dict[str, float]] = ({"speedup": 1.5},), **changes: Any) -> Recipe:
    """The tiny model, trained by two steps once its plan is known."""
    document = {
        "model": MODEL,
        "data": {"source": IMAGES, "batch_size": 16},
        "planner": {"budgets": list(budgets), "runtime": {"backend": "torch"}, "config": {"trials": 2}},
        "distill": {"steps": 2, **QUIET},
        "evaluate": False,
        "report": False,
    }
    return read_recipe({**document, **changes})


def stages_of(recipe: Recipe, folder: Path, **options: Any) -> list[str]:
    """The stages that did work."""
    ran: list[Progress] = []
    run(recipe, folder, progress=ran.append, **options)
    return [one.stage for one in ran if one.unit == "begun"]


def test_the_plan_is_found_first_and_the_student_is_made_of_it(tmp_path: Path, planner: Planner) -> None:
    news: list[Any] = []
    result = run(planned_recipe(), tmp_path / "out", announce=news.append)
    found = read_plan_file(tmp_path / "out" / "planner" / "plan.json")
    assert plan_of(result.student) == found == read_plan_file(tmp_path / "out" / "plan.json")
    assert found.depth == 3
    (call,) = planner.calls
    assert call["budgets"] == (Budget(speedup=1.5),)
    assert call["runtime"] == RuntimeConfig(backend="torch")
    assert call["config"].trials == 2
    assert call["out"] == tmp_path / "out" / "planner"
    assert call["recipe"].planner is None
    outline = next(one for one in news if isinstance(one, Outline))
    assert (outline.planning, outline.planning_seconds) == (["--speedup 1.5 in torch"], 300.0)


def test_a_run_that_was_interrupted_does_not_plan_again(tmp_path: Path, planner: Planner) -> None:
    def interrupt(one: Progress) -> None:
        if one.stage == "distill":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(planned_recipe(), tmp_path / "out", progress=interrupt)
    assert len(planner.calls) == 1
    assert stages_of(planned_recipe(), tmp_path / "out") == ["distill"]
    assert stages_of(planned_recipe(), tmp_path / "out") == []
    assert len(planner.calls) == 1


def test_a_search_that_was_interrupted_is_asked_for_again_in_its_folder(
    tmp_path: Path, planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(recipe: Recipe, out: Path, **asked: Any) -> Any:
        (out / "trials").mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("vitslim.pipeline.planning.plan", half)
        with pytest.raises(KeyboardInterrupt):
            run(planned_recipe(), tmp_path / "out")
    assert (tmp_path / "out" / "planner" / "trials").is_dir()
    assert stages_of(planned_recipe(), tmp_path / "out") == ["plan", "convert", "distill"]
    assert (tmp_path / "out" / "planner" / "trials").is_dir()


def test_what_comes_after_the_plan_can_change_without_another_search(tmp_path: Path, planner: Planner) -> None:
    run(planned_recipe(), tmp_path / "out")
    bench = {"backends": ["torch"], "batches": [1], "rounds": 5, "warmup": 1}
    assert stages_of(planned_recipe(bench=bench), tmp_path / "out", overwrite=True) == ["bench"]
    assert len(planner.calls) == 1
    assert stages_of(planned_recipe([{"macs": 0.001}]), tmp_path / "out", overwrite=True)[0] == "plan"
    assert planner.calls[1]["budgets"] == (Budget(macs=0.001),)
    # The work is done in a copy, and the plan with it.
    assert planner.calls[1]["out"] != tmp_path / "out" / "planner"
    assert read_json(tmp_path / "out" / "planner" / "planner.json")["answers"][0]["budget"]["macs"] == 0.001


def test_a_run_without_a_budget_leaves_no_earlier_search_behind(tmp_path: Path, planner: Planner) -> None:
    run(planned_recipe(), tmp_path / "out")
    run(planned_recipe(planner=None, convert=[{"method": "depth", "keep": 2}]), tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "planner").exists()


def test_a_run_that_cannot_plan_does_not_pass_the_budget_over(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run it with vitslim\.pipeline\.run"):
        running.run(planned_recipe(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- before ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"planner": {"budgets": {"params": 90}}}, "is within the budget of 90 already"),
        ({"planner": {"budgets": {"macs": 90}}}, "is within the budget of 90 already"),
        ({"planner": {"budgets": {"file_mib": 90}}}, "MiB of weights in fp32 and is within the budget of 90 already"),
        ({"planner": {"budgets": {"speedup": 2}, "runtime": {"backend": "tensorrt"}}}, "target tensorrt runs on a GPU"),
        ({"planner": {"budgets": {"speedup": 2}, "runtime": {"backend": "train"}}}, "unknown backend 'train'"),
        ({"data": {"source": "fractals:classes=5,train_per_class=4,val_per_class=4"}, "evaluate": True}, "5 classes"),
        ({"device": "tpu"}, "device 'tpu' is not one"),
    ],
)
def test_what_can_be_refused_before_a_search_is(
    changes: dict[str, Any], message: str, tmp_path: Path, planner: Planner
) -> None:
    for act in (check, lambda recipe: run(recipe, tmp_path / "out")):
        with pytest.raises(VitslimError, match=message):
            act(planned_recipe(**changes))
    assert not planner.calls
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_a_gpu_to_plan_for_has_to_be_there(planner: Planner) -> None:
    section = {"budgets": {"speedup": 2}, "runtime": {"backend": "compiled", "device": "cuda"}}
    with pytest.raises(MissingDependencyError, match="no usable GPU is there"):
        check(planned_recipe(planner=section))


def test_a_converted_model_is_not_planned_for(tmp_path: Path) -> None:
    student = vitslim.convert(tiny_model(), "depth", keep=3)
    vitslim.save(student, tmp_path / "student")
    with pytest.raises(ConfigError, match="is converted already; a plan for a budget begins with the dense model"):
        check(planned_recipe(model={"name": str(tmp_path / "student")}))


def test_a_target_that_is_not_installed_is_refused_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> Any:
        return None if name == "onnxruntime" else find_spec(name)

    runtimes.check_runtime(RuntimeConfig())
    assert runtimes.fastest_backend("cpu") == "ort"
    monkeypatch.setattr(runtimes, "find_spec", without)
    with pytest.raises(
        MissingDependencyError, match=r"target ort is not installed here, it needs onnxruntime: .*'vitslim\[onnx\]'"
    ):
        runtimes.check_runtime(RuntimeConfig())
    runtimes.check_runtime(RuntimeConfig(backend="torch"))
    assert runtimes.fastest_backend("cpu") == "torch"
    assert runtimes.fastest_backend("cuda:1") == "compiled"


# --- Python ---------------------------------------------------------------------------------------------------------


def tiny_model() -> torch.nn.Module:
    given = {name: value for name, value in MODEL.items() if name not in ("name", "options")}
    return vitslim.open_model("builtin", **given, **MODEL["options"])


def test_a_plan_found_for_a_module_is_what_convert_takes(tmp_path: Path, planner: Planner) -> None:
    model = tiny_model()
    opened: list[dict[str, torch.Tensor]] = []
    ask = planner.plan

    def look(recipe: Recipe, *args: Any, **asked: Any) -> Any:
        opened.append(checkpoint.load(recipe.model.name).state_dict())
        return ask(recipe, *args, **asked)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitslim.pipeline.planning.plan", look)
        report = vitslim.plan(model, IMAGES, speedup=1.5)
    assert all(torch.equal(opened[0][name], value) for name, value in model.state_dict().items())
    (call,) = planner.calls
    assert not call["out"].exists()
    assert not Path(call["recipe"].model.name).exists()
    assert (call["recipe"].distill.epochs, call["config"]) == (3.0, PlannerConfig())
    student = vitslim.convert(model, plan=report.plan)
    assert plan_of(student) == read_plan(report.plan)


def test_every_argument_of_a_search_arrives(tmp_path: Path, planner: Planner) -> None:
    vitslim.plan(
        str(saved(tmp_path)),
        DataConfig(source=IMAGES, batch_size=8),
        speedup=[1.5, 2],
        latency_ms=3,
        macs=0.001,
        params=0.05,
        file_mib=(0.2,),
        target="compiled",
        batch=8,
        threads=2,
        precision="bf16",
        config=PlannerConfig(trials=3),
        distill=DistillConfig(steps=7),
        out=tmp_path / "out",
    )
    (call,) = planner.calls
    assert call["budgets"] == (
        *(Budget(speedup=1.5), Budget(speedup=2), Budget(latency_ms=3), Budget(macs=0.001)),
        *(Budget(params=0.05), Budget(file_mib=0.2)),
    )
    assert call["runtime"] == RuntimeConfig(backend="compiled", batch=8, threads=2, precision="bf16")
    assert call["config"] == PlannerConfig(trials=3)
    assert call["recipe"].distill.steps == 7
    assert call["recipe"].data.batch_size == 8
    assert (tmp_path / "out" / "plan.json").is_file()
    vitslim.plan("builtin", IMAGES, max_drop=1.5)
    assert planner.calls[1]["budgets"] == (Budget(max_drop=1.5),)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "name a budget; there are speedup, latency_ms, macs, params, file_mib, max_drop"),
        ({"speedup": 0.9}, "speedup=0.9: Input should be greater than 1"),
        ({"speedup": [2, 2]}, "--speedup 2 given more than once"),
        ({"speedup": 2, "max_drop": 1}, "--max-drop 1 tries several speedups by itself"),
        ({"macs": 1, "target": "tflite"}, "unknown backend 'tflite'; known: "),
        ({"macs": 1, "target": "rtx"}, "target rtx runs on a GPU"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused(given: dict[str, Any], message: str, planner: Planner) -> None:
    with pytest.raises(ConfigError, match=message):
        vitslim.plan("builtin", IMAGES, **given)
    assert not planner.calls


def saved(folder: Path) -> Path:
    vitslim.save(tiny_model(), folder / "dense")
    return folder / "dense"
