"""A run over a tiny model: what it writes, what it skips, what it refuses, how it goes on after a fall."""

import contextlib
import copy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from tests.kills import content_of
from tests.pipeline.tiny import IMAGES, MODEL, QUIET, RECIPE, WHOLE
from vitslim import checkpoint
from vitslim.errors import (
    CheckFailedError,
    ConfigError,
    DataError,
    MissingDependencyError,
    UnsupportedModelError,
    VitslimError,
)
from vitslim.files import read_json
from vitslim.pipeline import evaluate, require_passed, run
from vitslim.pipeline.checks import check
from vitslim.progress import Progress
from vitslim.recipe import Recipe, load_recipe, read_recipe
from vitslim.report.parts import read_parts

STAGES = ("analyze", "convert", "warm_start", "distill", "finetune_dense", "evaluate")

# For what is about the student alone: nothing beside it is computed.
ONLY_TRAINED: dict[str, Any] = {"analyze": None, "finetune_dense": False, "evaluate": False}


def recipe_with(**changes: Any) -> Recipe:
    """The tiny recipe with ``section__key=value`` changed."""
    document = copy.deepcopy(RECIPE)
    for path, value in changes.items():
        *sections, last = path.split("__")
        place: Any = document
        for section in sections:
            place = place[section]
        place[last] = value
    return read_recipe(document)


def test_one_set_of_images_for_training_and_evaluation_is_said(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "0.png")
    with pytest.warns(UserWarning, match="serves both training and evaluation"):
        check(recipe_with(data__source=str(tmp_path), data__batch_size=2))
    check(recipe_with(data__source=str(tmp_path), data__batch_size=2, evaluate=False))


def test_an_early_form_that_the_student_lacks_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"distill\.early_tokens=0\.5: no step of this VisionTransformer chooses"):
        run(recipe_with(distill__early_tokens=0.5), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_student_learns_early_and_the_dense_model_as_always(tmp_path: Path) -> None:
    recipe = recipe_with(convert=[{"method": "evo_vit"}], distill__early_tokens=0.5, analyze=None)
    student = run(recipe, tmp_path).student
    assert torch.equal(student.head.weight, state_of(tmp_path)["head.weight"])
    assert read_json(tmp_path / "train" / "result.json")["settings"]["early_tokens"] == 0.5
    assert read_json(tmp_path / "train" / "dense" / "result.json")["settings"]["early_tokens"] == 0.0
    assert any(step["tokens"].get("early_form") for step in read_json(tmp_path / "plan.json")["steps"])


def stages_of(recipe: Recipe, folder: Path, **options: Any) -> list[str]:
    """The stages that did work."""
    ran: list[str] = []

    def note(one: Progress) -> None:
        if one.unit == "begun":
            ran.append(one.stage)

    run(recipe, folder, progress=note, **options)
    return ran


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder).state_dict()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


# --- the whole run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "out"
    result = run(read_recipe(WHOLE), folder)
    require_passed(result)
    return folder


def test_the_whole_road_writes_the_documented_folder(whole: Path) -> None:
    found = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    assert found == {
        "config.json",
        "model.safetensors",
        "README.md",
        "recipe.yaml",
        "stages.json",
        "analysis.json",
        "plan.json",
        "choices.json",
        "cost.json",
        "metrics.json",
        "env.json",
        "bench.json",
        "report.html",
        "export/model.onnx",
        "export/model.onnx.json",
        "export/parity.json",
        *(f"plots/{path.name}" for path in (whole / "plots").iterdir()),
        *(f"train/{name}" for name in ("log.jsonl", "state.safetensors", "result.json")),
        *(
            f"train/{stage}/{name}"
            for stage in ("warm_start", "dense")
            for name in (
                "log.jsonl",
                "state.safetensors",
                "result.json",
                "config.json",
                "model.safetensors",
                "README.md",
            )
        ),
    }


def test_the_report_finds_every_part(whole: Path) -> None:
    parts = read_parts(whole)
    for name in ("config", "analysis", "plan", "metrics", "log", "parity", "bench", "environment", "recipe"):
        assert getattr(parts, name) is not None, name


def test_the_parity_and_the_bench_are_of_the_student(whole: Path) -> None:
    assert read_json(whole / "export" / "parity.json")["passed"] is True
    assert {row["model"] for row in read_json(whole / "bench.json")["rows"]} == {"dense", "student"}


def test_the_saved_recipe_makes_the_same_run(whole: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(whole, tmp_path / "out"))
    assert stages_of(load_recipe(copied / "recipe.yaml"), copied) == []


def test_the_metrics_hold_teacher_student_and_fine_tuned_dense_model(finished: Path) -> None:
    metrics = read_json(finished / "metrics.json")
    assert set(metrics) == {"teacher", "student", "dense_finetuned"}
    assert metrics["teacher"]["agreement"] is None
    assert all(row["images"] == 16 and 0 <= row["top1"] <= 1 for row in metrics.values())
    assert "| student |" in (finished / "README.md").read_text()


def test_the_saved_student_is_the_one_that_was_measured(finished: Path) -> None:
    again = evaluate(finished, IMAGES)
    assert again.top1 == read_json(finished / "metrics.json")["student"]["top1"]


def test_the_classes_of_the_data_are_saved_with_the_student(finished: Path) -> None:
    names = checkpoint.load_config(finished).class_names
    assert names is not None
    assert len(names) == 4


def test_without_images_the_model_is_only_converted(tmp_path: Path) -> None:
    result = run(read_recipe({"model": MODEL, "convert": [{"method": "skipat"}]}), tmp_path / "out")
    assert result.metrics == {}
    assert result.passed
    assert not (tmp_path / "out" / "train").exists()
    assert read_json(tmp_path / "out" / "plan.json")["steps"][1]["attention"]["kind"] == "reuse"


def test_without_a_method_the_dense_model_is_trained(tmp_path: Path) -> None:
    recipe = recipe_with(convert=[], warm_start=None, analyze=None, finetune_dense=False)
    result = run(recipe, tmp_path / "out")
    assert read_json(tmp_path / "out" / "plan.json") == {}
    assert set(result.metrics) == {"teacher", "student"}


# --- skipping -------------------------------------------------------------------------------------------------------


def test_a_second_run_does_nothing_and_gives_the_same_result(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state_of(copied)

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a finished stage was run again")

    for name in ("vitslim.analysis.analyze", "vitslim.train.warm_start", "vitslim.train.distill"):
        monkeypatch.setattr(name, never)
    monkeypatch.setattr("vitslim.train.evaluate_all", never)
    result = run(read_recipe(RECIPE), copied)
    assert set(result.metrics) == {"teacher", "student", "dense_finetuned"}
    assert same(result.student.state_dict(), before)


def test_a_change_runs_what_depends_on_it_and_nothing_else(copied: Path) -> None:
    convert = [{"method": "skipat", "layers": [2]}]
    assert stages_of(recipe_with(convert=convert), copied, overwrite=True) == list(STAGES[1:])


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"report": True}, None),
        ({"evaluate": False}, None),
        ({"data__workers": 1}, None),
        ({"finetune_dense": False}, "evaluate"),
        ({"distill__lr": 1e-4}, "distill"),
        ({"distill__steps": 2}, "distill"),
        ({"warm_start__lr": 1e-4}, "warm_start"),
        ({"warm_start": None}, "distill"),
        ({"seed": 1}, "convert"),
        ({"analyze__images": 12}, "analyze"),
        ({"data__train_limit": 16}, "analyze"),
        ({"model__options": {"depth": 4, "embed_dim": 48, "num_heads": 4}}, "analyze"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_change_begins_at_the_first_stage_that_depends_on_it(
    change: dict[str, Any], first: str | None, copied: Path
) -> None:
    begun: list[str] = []

    def stop(one: Progress) -> None:
        if one.unit == "begun":
            begun.append(one.stage)
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        run(recipe_with(**change), copied, overwrite=True, progress=stop)
    assert begun == ([] if first is None else [first])


def test_other_training_settings_start_from_the_warm_started_student(copied: Path, tmp_path: Path) -> None:
    changes = {"distill__lr": 1e-4, "finetune_dense": False, "evaluate": False}
    # With the analysis of the finished run, on which all that follows depends.
    assert stages_of(recipe_with(**changes), copied, overwrite=True) == ["distill"]
    run(recipe_with(**changes, analyze=None), tmp_path / "fresh")
    assert same(state_of(copied), state_of(tmp_path / "fresh"))


def test_another_warm_start_does_not_bring_back_the_old_student(copied: Path, tmp_path: Path) -> None:
    # The distillation has the settings of the finished one, so its state would fit.
    changes = {"warm_start__lr": 1e-4, "finetune_dense": False, "evaluate": False}
    assert stages_of(recipe_with(**changes), copied, overwrite=True) == ["warm_start", "distill"]
    run(recipe_with(**changes, analyze=None), tmp_path / "fresh")
    assert same(state_of(copied), state_of(tmp_path / "fresh"))


def test_evidence_of_the_old_student_does_not_stay_with_a_new_one(copied: Path) -> None:
    (copied / "export").mkdir()
    (copied / "export" / "model.onnx").write_text("of the old student")
    (copied / "bench.json").write_text("of the old student")
    (copied / "notes.txt").write_text("mine")
    recipe = recipe_with(convert=[{"method": "skipat", "layers": [2]}], evaluate=False, analyze=None)
    run(recipe, copied, overwrite=True)
    for gone in ("export", "bench.json", "metrics.json", "analysis.json", "plots"):
        assert not (copied / gone).exists(), gone
    assert (copied / "notes.txt").read_text() == "mine"


def test_evidence_that_was_added_by_hand_stays_with_an_unchanged_student(copied: Path) -> None:
    (copied / "export").mkdir()
    (copied / "export" / "model.onnx").write_text("exported by a command")
    run(read_recipe(RECIPE), copied)
    assert (copied / "export" / "model.onnx").exists()


# --- falling and going on -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["warm_start", "distill (dense)"])
def test_a_run_that_was_cut_off_goes_on_where_it_stood(stage: str, finished: Path, tmp_path: Path) -> None:
    changes = ONLY_TRAINED | {"finetune_dense": stage == "distill (dense)"}
    recipe = recipe_with(warm_start__checkpoint_every=1, **changes)

    def fall(one: Progress) -> None:
        if one.stage == stage and one.unit == "step" and one.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "out", progress=fall)
    steps: list[tuple[str, int]] = []

    def note(one: Progress) -> None:
        if one.unit == "step":
            steps.append((one.stage, one.done))

    run(recipe, tmp_path / "out", progress=note)
    # The fall came before the state of step 2 was written, so that step is made again, and none before it.
    assert steps[0] == (stage, 2)
    assert same(state_of(finished), state_of(tmp_path / "out"))


def test_a_cut_off_run_is_not_continued_with_other_settings(tmp_path: Path) -> None:
    def fall(one: Progress) -> None:
        if one.stage == "distill" and one.unit == "step" and one.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe_with(**ONLY_TRAINED), tmp_path / "out", progress=fall)
    recipe = recipe_with(distill__lr=1e-4, **ONLY_TRAINED)
    run(recipe, tmp_path / "out", overwrite=True)
    run(recipe, tmp_path / "fresh")
    assert same(state_of(tmp_path / "out"), state_of(tmp_path / "fresh"))


def test_another_recipe_that_falls_leaves_every_byte_of_the_finished_run(copied: Path) -> None:
    (copied / "export").mkdir()
    (copied / "export" / "model.onnx").write_text("of the old student")
    before = content_of(copied)
    recipe = recipe_with(convert=[{"method": "skipat", "layers": [2]}], **ONLY_TRAINED)

    def fall(one: Progress) -> None:
        if one.stage == "distill" and one.unit == "step" and one.done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(recipe, copied, overwrite=True, progress=fall)
    assert content_of(copied) == before
    assert stages_of(recipe, copied, overwrite=True) == ["distill"]
    assert not (copied / "export").exists()
    assert [path.name for path in copied.parent.iterdir()] == ["out"]


def test_a_loss_that_is_not_finite_keeps_the_last_good_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_with(**ONLY_TRAINED)

    def broken(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
        return student.sum() * float("nan")

    monkeypatch.setattr(sys.modules["vitslim.train.distill"], "kd_loss", broken)
    with pytest.raises(CheckFailedError, match=r"distill, step 1 of 3: the loss is .*nan.*lower lr") as caught:
        run(recipe, tmp_path / "out")
    assert caught.value.exit_code == 1
    kept = state_of(tmp_path / "out")
    assert same(kept, state_of(tmp_path / "out" / "train" / "warm_start"))
    assert all(value.isfinite().all() for value in kept.values())


def test_an_artefact_out_of_tolerance_breaks_the_guarantee(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitslim.targets.onnx.export import export_onnx

    def wrong(model: torch.nn.Module, path: Path, **options: Any) -> Any:
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.head.bias += 1.0
        return export_onnx(other, path, **options)

    monkeypatch.setattr(sys.modules["vitslim.targets.onnx.export"], "export_onnx", wrong)
    shallow = MODEL | {"options": MODEL["options"] | {"depth": 2}}
    document = {"model": shallow, "convert": [{"method": "skipat"}], "export": {"images": 4, "batches": [1]}}
    result = run(read_recipe(document), tmp_path / "out")
    assert not result.passed
    with pytest.raises(CheckFailedError, match=r"out of tolerance; see .*parity\.json"):
        require_passed(result)
    # Asking again does not make it pass.
    assert not run(read_recipe(document), tmp_path / "out").passed


# --- refusing -------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], type[VitslimError], str]] = {
    "unknown model": ({"model": {"name": "deit_smal"}}, ConfigError, r"unknown model 'deit_smal'; did you mean"),
    "unknown family": (
        {"model": {"name": "samvit_base_patch16"}, "data": None, "analyze": None},
        UnsupportedModelError,
        "SAM|Sam",
    ),
    "layer 0": ({"convert": [{"method": "skipat", "layers": [0]}]}, ConfigError, "block 0 has no earlier attention"),
    "layer out of range": (
        {"convert": [{"method": "skipat", "layers": [4]}]},
        ConfigError,
        r"block 4 does not exist; choose from 0\.\.3",
    ),
    "method twice": (
        {"convert": [{"method": "skipat", "layers": [1]}, {"method": "skipat", "layers": [2]}]},
        ConfigError,
        "already converted with 'skipat'",
    ),
    "auto without analysis": (
        {"convert": [{"method": "skipat", "layers": "auto"}], "analyze": None},
        ConfigError,
        "needs the analysis of the same recipe; add an analyze section",
    ),
    "missing images": ({"data": {"source": "/nowhere/images"}}, DataError, "/nowhere/images does not exist"),
    "other classes": (
        {"data": {"source": IMAGES.replace("classes=4", "classes=5")}},
        DataError,
        "given 5 classes, model has 4 outputs",
    ),
    "no classifier": ({"model": {**MODEL, "num_classes": 0}}, ConfigError, "has no classifier"),
    "device name": ({"device": "gpu"}, ConfigError, "device 'gpu' is not one; wanted cpu, cuda or cuda:N"),
    "other device": ({"device": "meta"}, ConfigError, "wanted cpu, cuda or cuda:N"),
    "unknown teacher": ({"teacher": "nowhere/teacher"}, ConfigError, "nowhere/teacher is neither a folder nor a file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_recipe_that_cannot_work_is_refused_before_anything_is_written(case: str, tmp_path: Path) -> None:
    change, kind, message = REFUSED[case]
    document = {**RECIPE, **change}
    if document["data"] is None:
        document = {"model": document["model"], "convert": document["convert"]}
    with pytest.raises(kind, match=message):
        run(read_recipe(document), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
def test_a_gpu_that_is_absent_is_refused_with_its_own_exit_code(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="no usable GPU is there") as caught:
        run(recipe_with(device="cuda"), tmp_path / "out")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()


def test_another_recipe_in_the_same_folder_needs_overwrite(copied: Path) -> None:
    before = state_of(copied)
    with pytest.raises(ConfigError, match="holds the run of another recipe"):
        run(recipe_with(seed=3), copied)
    assert same(state_of(copied), before)


def test_checking_a_recipe_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def without_weights(name: str, pretrained: bool = False, **options: Any) -> Any:
        assert not pretrained
        return create(name, pretrained=pretrained, **options)

    monkeypatch.setattr(timm, "create_model", without_weights)
    found = check(read_recipe({"model": {"name": "deit_small"}, "convert": [{"method": "skipat"}]}))
    assert found.plan is not None
    assert [step.block for step in found.plan.steps if not step.is_dense] == [3, 4, 5, 6, 7, 8]


# --- chains ---------------------------------------------------------------------------------------------------------


def chain(model: Path, **changes: Any) -> dict[str, Any]:
    own = {"model": {"name": str(model)}, "convert": [{"method": "evo_vit"}], "finetune_dense": False}
    return {**RECIPE, **own, **changes}


def test_a_converted_folder_needs_a_dense_teacher_for_stages_that_read_one(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"already converted \(skipat\).*--teacher NAME.*--set analyze=null"):
        run(read_recipe(chain(finished)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_chain_learns_from_the_dense_model_that_is_named(finished: Path, tmp_path: Path) -> None:
    dense = run(read_recipe({"model": MODEL}), tmp_path / "dense").folder
    result = run(read_recipe(chain(finished, teacher=str(dense))), tmp_path / "out")
    assert same(result.teacher.state_dict(), state_of(dense))
    assert set(result.metrics) == {"teacher", "student"}


def test_a_chain_without_a_teacher_learns_from_the_model_it_started_from(finished: Path, tmp_path: Path) -> None:
    result = run(read_recipe(chain(finished, analyze=None, warm_start=None)), tmp_path / "out")
    assert same(result.teacher.state_dict(), state_of(finished))


def test_a_model_folder_that_changed_is_another_input(tmp_path: Path) -> None:
    first = read_recipe({"model": MODEL, "seed": 1})
    second = read_recipe({"model": MODEL, "seed": 2})
    run(first, tmp_path / "dense")
    recipe = read_recipe({"model": {"name": str(tmp_path / "dense")}, "convert": [{"method": "skipat"}]})
    run(recipe, tmp_path / "out")
    run(second, tmp_path / "dense", overwrite=True)
    assert stages_of(recipe, tmp_path / "out") == ["convert"]
    head = "head.weight"
    assert torch.equal(state_of(tmp_path / "out")[head], state_of(tmp_path / "dense")[head])


def test_images_of_other_classes_can_be_distilled_on_without_their_labels(tmp_path: Path) -> None:
    data = {"source": IMAGES.replace("classes=4", "classes=5"), "batch_size": 16, "labels": "ignore"}
    recipe = read_recipe({**RECIPE, "data": data, "finetune_dense": False, "analyze": None})
    result = run(recipe, tmp_path / "out")
    assert result.metrics["student"]["top1"] is None
    assert result.metrics["student"]["agreement"] is not None
    assert checkpoint.load_config(tmp_path / "out").class_names is None


def test_features_without_a_classifier_are_learned_from_tokens(tmp_path: Path) -> None:
    distill = {"steps": 1, "kd_weight": 0.0, "token_weight": 1.0, **QUIET}
    document = {**RECIPE, "model": {**MODEL, "num_classes": 0}, "distill": distill}
    result = run(read_recipe({**document, **ONLY_TRAINED, "warm_start": None}), tmp_path / "out")
    assert result.student.num_classes == 0
