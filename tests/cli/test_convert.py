"""convert, run, demo."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from tests.cli.conftest import TINY, TRAINING, Command
from tests.pipeline.tiny import IMAGES, QUIET
from vitslim import checkpoint
from vitslim.files import read_json, write_json
from vitslim.names import BUILTIN

SHORT = tuple(
    word
    for section, steps in (("warm_start", 2), ("distill", 2))
    for key, value in {**QUIET, "steps": steps}.items()
    for word in ("--set", f"{section}.{key}={str(value).lower()}")
)

# --- convert ---------------------------------------------------------------------------------------------------------


def test_without_images_a_model_is_converted_and_said_to_be_untrained(tmp_path: Path, vitslim: Command) -> None:
    outcome = vitslim("convert", BUILTIN, "--method", "skipat", "-O", "layers=1-2", "--out", tmp_path / "out", *TINY)
    assert outcome.code == 0
    assert "reuse (expansion 2)" in outcome.out
    assert "not trained yet; `vitslim train" in outcome.err
    assert outcome.err.rstrip().endswith(f"wrote {tmp_path / 'out'}")
    assert checkpoint.load_config(tmp_path / "out").conversions[0].options["layers"] == [1, 2]


def test_with_images_a_model_is_converted_trained_and_measured(tmp_path: Path, vitslim: Command) -> None:
    words = ("--data", IMAGES, "--batch-size", 16, "--finetune-dense", "--set", "report=false", *SHORT, "--json")
    outcome = vitslim("convert", BUILTIN, "--method", "skipat", "--out", tmp_path / "out", *TINY, *words)
    assert outcome.code == 0, outcome.err
    found = outcome.document
    assert set(found) == {"out", "metrics", "plan", "choices", "passed", "training"}
    assert set(found["metrics"]) == {"teacher", "student", "dense_finetuned"}
    assert found["passed"] is True
    assert read_json(tmp_path / "out" / "train" / "result.json")["steps"] == 2
    for stage in ("analyze", "warm_start", "distill (dense)", "evaluate"):
        assert stage in outcome.err


def test_methods_compose_with_options_of_each(tmp_path: Path, vitslim: Command) -> None:
    words = ("--method", "skipat", "--method", "evo_vit", "-O", "skipat.layers=[1]", "--out", tmp_path / "out")
    assert vitslim("convert", BUILTIN, *words, *TINY).code == 0
    methods = checkpoint.load_config(tmp_path / "out").conversions
    assert [entry.method for entry in methods] == ["skipat", "evo_vit"]
    assert methods[0].options["layers"] == [1]


def test_a_saved_student_is_converted_with_another_method(student: Path, tmp_path: Path, vitslim: Command) -> None:
    outcome = vitslim("convert", student, "--method", "evo_vit", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    methods = [entry.method for entry in checkpoint.load_config(tmp_path / "out").conversions]
    assert methods == ["skipat", "evo_vit"]


def test_a_chain_learns_from_the_teacher_that_is_named(
    student: Path, dense: Path, tmp_path: Path, vitslim: Command
) -> None:
    words = ("--data", IMAGES, "--batch-size", 16, "--set", "report=false", *SHORT)
    start = ("convert", student, "--method", "evo_vit", "--out", tmp_path / "out", *words)
    refused = vitslim(*start)
    assert refused.code == 2
    assert "already converted (skipat), but warm_start read a dense model; name the one to learn from" in refused.error
    assert vitslim(*start, "--teacher", dense).code == 0


@pytest.mark.parametrize(
    ("words", "is_analyzed"),
    [
        (("evo_vit",), False),
        (("evo_vit", "--analyze"), True),
        (("evo_vit", "--set", "analyze.images=8"), True),
        (("evo_vit", "--method", "sret"), True),
        (("skipat", "-O", "layers=1-2"), False),
    ],
)
def test_a_method_that_reads_no_analysis_does_not_pay_for_one(
    words: tuple[str, ...], is_analyzed: bool, tmp_path: Path, vitslim: Command
) -> None:
    start = ("convert", BUILTIN, *TINY, "--data", IMAGES, "--out", tmp_path, "--dry-run", "--json")
    recipe = vitslim(*start, "--method", *words).document["recipe"]
    assert (recipe["analyze"] is not None) == is_analyzed


def test_a_run_says_first_what_it_will_do_and_then_what_it_chose(tmp_path: Path, vitslim: Command) -> None:
    words = ("--data", IMAGES, "--batch-size", 16, "--set", "report=false", "--json", *SHORT)
    outcome = vitslim("convert", BUILTIN, "--method", "skipat", "--out", tmp_path / "out", *TINY, *words)
    (choice,) = outcome.document["choices"]
    assert choice == read_json(tmp_path / "out" / "choices.json")[0]
    lines = outcome.err.splitlines()
    header = {line.split()[0]: line for line in lines[:6]}
    assert list(header) == ["model", "images", "input", "augment", "methods", "budget"]
    assert "32 to train on, 16 held out, 4 classes" in header["images"]
    assert "32 × 32 px, bicubic" in header["input"]
    assert "hflip 0.5, shift 0.06 (off: --set data.augment.hflip=0 --set data.augment.shift=0" in header["augment"]
    assert "warm start 2 steps of 16 images; distillation 2 steps of 16 images" in header["budget"]
    said = next(line for line in lines if line.startswith("skipat.layers: used block"))
    assert said.endswith(" as recommended")
    dry = vitslim("convert", BUILTIN, "--method", "skipat", "--out", tmp_path / "no", *TINY, *words, "--dry-run")
    assert dry.err.splitlines()[:6] == lines[:6]
    assert dry.document["choices"][0]["recommended"] is None


def test_the_augmentation_that_is_off_is_not_said_to_be_on(tmp_path: Path, vitslim: Command) -> None:
    words = ("--data", IMAGES, "--set", "data.augment.hflip=0", "--set", "data.augment.shift=0", "--dry-run")
    outcome = vitslim("convert", BUILTIN, "--method", "evo_vit", "--out", tmp_path, *TINY, *words)
    assert "augment   none" in outcome.err


@pytest.mark.parametrize("command", ["convert", "train", "run"])
def test_the_mirroring_of_images_is_named_in_the_help(command: str, vitslim: Command) -> None:
    text = " ".join(vitslim(command, "--help").out.split())
    assert "mirrored left-right with probability 0.5" in text
    assert f"--set {'' if command == 'train' else 'data.'}augment.hflip=0" in text


@pytest.mark.parametrize("command", ["convert", "run", "train", "pretrain"])
def test_one_set_of_images_for_training_and_measuring_is_said_once(
    command: str, dense: Path, recipe_file: Path, tmp_path: Path, vitslim: Command
) -> None:
    for name in "abcd":
        for number in range(4):
            path = tmp_path / "images" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (number * 60, 0, 0)).save(path)
    source = tmp_path / "images"
    phase = {"image_size": 32, "batch_size": 8, "train": {"steps": 1, "ce_weight": 1.0, "kd_weight": 0.0, **QUIET}}
    phases = {"model": BUILTIN, "data": {"source": str(source)}, "phases": [phase]}
    (tmp_path / "phases.yaml").write_text(yaml.safe_dump(phases))
    words = {
        "convert": (dense, "--method", "evo_vit", "--data", source, "--set", "report=false", *SHORT),
        "run": (recipe_file, "--set", f"data.source={source}", "--set", "analyze=null"),
        "train": (dense, "--data", source, *TRAINING),
        "pretrain": (tmp_path / "phases.yaml",),
    }[command]
    outcome = vitslim(command, *words, "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("serves both training and evaluation") == 1


def test_a_dry_run_shows_recipe_and_plan_and_writes_nothing(tmp_path: Path, vitslim: Command) -> None:
    words = ("convert", BUILTIN, "--method", "skipat", "--out", tmp_path / "out", *TINY, "--dry-run")
    outcome = vitslim(*words)
    assert outcome.code == 0
    assert "method: skipat" in outcome.out
    assert "reuse (expansion 2)" in outcome.out
    document = vitslim(*words, "--json").document
    assert document["recipe"]["convert"] == [{"method": "skipat"}]
    assert [step["attention"]["kind"] for step in document["plan"]["steps"]] == ["dense", "reuse", "reuse", "dense"]
    assert not (tmp_path / "out").exists()


def test_a_plan_that_inspect_shows_is_converted_to_again_and_can_be_edited_before(
    student: Path, tmp_path: Path, vitslim: Command
) -> None:
    plan = vitslim("inspect", student, "--json").document["plan"]
    plan["steps"][2]["attention"] = {"kind": "dense"}
    plan["steps"][3]["mlp"] = {"kind": "narrow", "neurons": 96}
    write_json(tmp_path / "plan.json", plan)
    outcome = vitslim("convert", BUILTIN, "--plan", tmp_path / "plan.json", "--out", tmp_path / "out", *TINY)
    assert outcome.code == 0, outcome.err
    assert "not trained yet; `vitslim train" in outcome.err
    assert [line.split()[2] for line in outcome.out.splitlines()[3:7]] == ["dense", "reuse", "dense", "dense"]
    found = vitslim("inspect", tmp_path / "out", "--json").document
    assert found["plan"] == plan
    assert found["conversions"] == []
    after = ("--method", "evo_vit", "--dry-run", "--json")
    twice = vitslim("convert", BUILTIN, "--plan", tmp_path / "plan.json", "--out", tmp_path / "no", *TINY, *after)
    steps = twice.document["plan"]["steps"]
    assert [step["mlp"] for step in steps] == [step["mlp"] for step in plan["steps"]]
    assert any(step["tokens"]["kind"] != "all" for step in steps)


def test_every_error_of_a_plan_edited_by_hand_is_in_one_line_and_nothing_is_written(
    student: Path, tmp_path: Path, vitslim: Command
) -> None:
    plan = read_json(student / "plan.json")
    plan["steps"][0]["attention"] = plan["steps"][1]["attention"]
    plan["steps"][2]["mlp"] = {"kind": "narow", "neurons": 96}
    plan["steps"][3]["mlp"] = {"kind": "narrow", "neurons": -1}
    plan["steps"][3]["block"] = 12
    plan["steps"][1]["tokens"] = {"kind": "merge", "keep": 0.5}
    plan["steps"][2]["tokens"] = {"kind": "merge", "keep": 0.75}
    plan["steps"][1]["weights"] = {"kind": "shared", "members": [1, 7], "home": 1}
    plan["format_version"] = 9
    write_json(tmp_path / "plan.json", plan)
    outcome = vitslim("convert", BUILTIN, "--plan", tmp_path / "plan.json", "--out", tmp_path / "out", *TINY)
    assert outcome.code == 2
    assert outcome.error.startswith(f"{tmp_path / 'plan.json'}: ")
    for message in (
        "step 0",
        "'narow'; did you mean 'narrow'?",
        "neurons=-1: ",
        "step 3: block 12 does not exist; choose from 0..3",
        "they only become fewer",
        "step 1: members [7] do not exist; choose from 0..3",
        "format_version=9: this vitslim reads 1",
    ):
        assert message in outcome.error
    assert not (tmp_path / "out").exists()


def test_an_alias_is_said_with_what_it_stands_for(tmp_path: Path, vitslim: Command) -> None:
    outcome = vitslim("convert", "deit_tiny", "--method", "skipat", "--out", tmp_path / "out", "--dry-run")
    assert "deit_tiny → deit_tiny_patch16_224.fb_in1k" in outcome.err


BAD_CONVERSIONS: dict[str, tuple[list[Any], str]] = {
    "unknown method": (["--method", "skipatt"], "unknown method 'skipatt'; did you mean 'skipat'?"),
    "unknown option": (["--method", "skipat", "-O", "layer=3"], "unknown option skipat.layer; did you mean 'layers'?"),
    "bad value": (["--method", "skipat", "-O", "kernel_size=4"], "an even kernel would shift the grid"),
    "no value": (["--method", "skipat", "-O", "layers"], "-O 'layers': wanted key=value"),
    "broken value": (["--method", "skipat", "-O", "layers=[1"], "-O layers is not YAML"),
    "other method": (["--method", "skipat", "-O", "evo_vit.x=1"], "method 'evo_vit' was not chosen"),
    "whose option": (["--method", "skipat", "--method", "evo_vit", "-O", "layers=1"], "with 2 methods write which one"),
    "layer 0": (["--method", "skipat", "-O", "layers=0-2"], "block 0 has no earlier attention to reuse"),
    "layer out of range": (
        ["--method", "skipat", "-O", "layers=3-8"],
        "skipat.layers: block 4 does not exist; choose from 0..3",
    ),
    "twice": (["--method", "skipat", "--method", "skipat"], "--method skipat was given twice"),
    "auto": (["--method", "skipat", "-O", "layers=auto"], "layers: auto needs the analysis"),
    "no images": (["--method", "skipat", "--epochs", 3], "--teacher, --analyze and --target need images"),
    "missing images": (["--method", "skipat", "--data", "/nowhere"], "/nowhere does not exist; give a folder"),
    "images option": (["--method", "skipat", "--data", "fractals:clases=3"], "did you mean 'classes'?"),
    "wrong classes": (
        ["--method", "skipat", "--data", "fractals:classes=5,train_per_class=4,val_per_class=4,image_size=32"],
        "given 5 classes, model has 4 outputs",
    ),
    "recipe key": (["--method", "skipat", "--set", "seeed=3"], "unknown key 'seeed'; did you mean 'seed'?"),
    "recipe value": (["--method", "skipat", "--set", "seed=x"], "seed='x': "),
    "device": (["--method", "skipat", "--device", "tpu!"], "device 'tpu!' is not one; wanted cpu, cuda or cuda:N"),
    "weights": (["--method", "skipat", "--weights", "/nowhere.pth"], "weights file /nowhere.pth does not exist"),
}


@pytest.mark.parametrize("case", BAD_CONVERSIONS)
def test_a_conversion_that_cannot_work_is_one_line_and_writes_nothing(
    case: str, tmp_path: Path, vitslim: Command
) -> None:
    words, message = BAD_CONVERSIONS[case]
    outcome = vitslim("convert", BUILTIN, "--out", tmp_path / "out", *TINY, *words)
    assert outcome.code == 2
    assert message in outcome.error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["samvit_base_patch16", "vit_relpos_small_patch16_224"])
def test_a_refused_family_is_named_before_its_weights_are_fetched(name: str, tmp_path: Path, vitslim: Command) -> None:
    outcome = vitslim("convert", name, "--method", "skipat", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "has no adapter; supported families:" in outcome.error


def test_the_same_method_twice_is_refused(student: Path, tmp_path: Path, vitslim: Command) -> None:
    outcome = vitslim("convert", student, "--method", "skipat", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "already converted with 'skipat'" in outcome.error


def test_a_saved_model_takes_no_options_of_a_new_one(student: Path, tmp_path: Path, vitslim: Command) -> None:
    outcome = vitslim("convert", student, "--method", "evo_vit", "--out", tmp_path / "out", "--num-classes", 3)
    assert outcome.code == 2
    assert "is a saved model, which knows its own num_classes" in outcome.error


@pytest.mark.parametrize("damage", ["truncated", "not JSON"])
def test_a_broken_folder_is_named(damage: str, copied: Path, tmp_path: Path, vitslim: Command) -> None:
    if damage == "truncated":
        (copied / "model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    else:
        (copied / "config.json").write_text("{")
    outcome = vitslim("convert", copied, "--method", "evo_vit", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert ("model.safetensors" if damage == "truncated" else "config.json") in outcome.error


def test_an_output_folder_that_holds_something_needs_overwrite(tmp_path: Path, vitslim: Command) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    words = ("convert", BUILTIN, "--method", "skipat", "--out", tmp_path, *TINY)
    outcome = vitslim(*words)
    assert outcome.code == 2
    assert "holds files that no run of vitslim wrote; pass --overwrite or another folder" in outcome.error
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert vitslim(*words, "--overwrite").code == 0
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a GPU")
@pytest.mark.parametrize("command", ["convert", "train", "eval", "bench", "analyze"])
def test_a_gpu_that_is_absent_has_its_own_exit_code(
    command: str, dense: Path, tmp_path: Path, vitslim: Command
) -> None:
    out = ("--out", tmp_path / "out")
    words = {
        "convert": ("--method", "skipat", *out),
        "train": ("--data", IMAGES, *out),
        "eval": ("--data", IMAGES),
        "bench": ("--backend", "torch"),
        "analyze": ("--data", IMAGES, *out),
    }[command]
    outcome = vitslim(command, dense, *words, "--device", "cuda")
    assert outcome.code == 3
    assert "no usable GPU is there; use cpu" in outcome.error
    assert not (tmp_path / "out").exists()


# --- run -------------------------------------------------------------------------------------------------------------


def test_a_recipe_is_run_and_then_skipped(recipe_file: Path, tmp_path: Path, vitslim: Command) -> None:
    outcome = vitslim("run", recipe_file, "--out", tmp_path / "out", "--set", "distill.steps=2")
    assert outcome.code == 0, outcome.err
    assert "accuracy" in outcome.out
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["distill"]["steps"] == 2
    again = vitslim("run", recipe_file, "--out", tmp_path / "out", "--set", "distill.steps=2")
    assert again.out == outcome.out
    assert "begun" not in again.err
    assert again.err.count("done before") == 5
    other = vitslim("run", recipe_file, "--out", tmp_path / "out")
    assert "holds the run of another recipe" in other.error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "bad.yaml does not exist"),
        ("model: [", "is not YAML"),
        ("modle: {}", "unknown key 'modle'; did you mean 'model'?"),
        ("phases: []", "unknown key 'phases'"),
    ],
)
def test_a_bad_recipe_is_one_line(content: str | None, message: str, tmp_path: Path, vitslim: Command) -> None:
    path = tmp_path / "bad.yaml"
    if content is not None:
        path.write_text(content)
    outcome = vitslim("run", path, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert message in outcome.error
    assert str(path) in outcome.error


# --- demo ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_quick_demo_ends_in_a_comparison(tmp_path: Path, vitslim: Command) -> None:
    outcome = vitslim("demo", "--quick", "--out", tmp_path / "demo", "--json")
    assert outcome.code == 0, outcome.err
    assert Path(outcome.document["report"]).is_file()
    assert {"teacher", "dense-finetuned", "skipat"} <= {row["model"] for row in outcome.document["table"]}


@pytest.mark.slow
def test_the_builtin_model_opens_and_knows_its_images(vitslim: Command) -> None:
    outcome = vitslim("eval", BUILTIN, "--data", "fractals:val_per_class=1", "--limit", 100, "--json")
    assert outcome.code == 0, outcome.err
    # Guessing among its classes would give 1 % or less.
    assert outcome.document["top1"] > 0.3
