"""list, inspect, analyze, doctor."""

import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import vitslim as package
from tests.cli.conftest import Command
from tests.pipeline.tiny import IMAGES
from vitslim import checkpoint
from vitslim.cli.inspect import _OPTIONAL
from vitslim.errors import ConfigError
from vitslim.methods import read_method
from vitslim.methods.support import method_forms
from vitslim.names import ALIASES, METHOD_NAMES
from vitslim.opening import open_shape
from vitslim.plain_yaml import read_yaml
from vitslim.plans import cost, plan_json
from vitslim.targets import list_targets
from vitslim.trunk import plan_of

# --- list -----------------------------------------------------------------------------------------------------------


def test_methods_are_listed_with_what_they_do(vitslim: Command) -> None:
    rows = vitslim("list", "--json").document
    assert {row["name"] for row in rows} == set(METHOD_NAMES)
    summaries = {row["name"]: row["summary"] for row in rows}
    assert summaries["skipat"] == "reuse the attention output of an earlier block through a small skip function"
    table = vitslim("list").out
    assert all(row["name"] in table and row["source"].split(",")[0] in table for row in rows)


def test_the_options_of_one_method_are_listed_with_type_default_meaning_and_example(vitslim: Command) -> None:
    outcome = vitslim("list", "methods", "skipat")
    lines = [line.strip() for line in outcome.out.splitlines()]
    assert "expansion    number, above 0 to 8; default 2; for example 0.5" in lines
    assert "Hidden width of Φ over the embedding width; 2 is the paper's, 0.5 or 0.25 the narrow form." in lines
    assert lines[-1] == "example: vitslim convert deit_small --method skipat -O layers=3-8 --out out"
    found = vitslim("list", "methods", "sret", "--json").document
    assert {row["name"]: row["default"] for row in found["options"]}["slices"] == [1]


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_every_option_of_every_method_is_explained_and_its_example_can_be_used(name: str, vitslim: Command) -> None:
    found = vitslim("list", "methods", name, "--json").document
    assert all(option["kind"] and option["meaning"] for option in found["options"])
    for option in found["options"]:
        read_method(name, {option["name"]: read_yaml(option["example"], option["name"])})
    assert found["command"] in vitslim("list", "methods", name).out


def test_targets_are_listed_with_what_runs_them_and_what_is_missing(
    vitslim: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitslim.targets.base.find_spec", lambda name: None if name == "tensorrt" else find_spec(name))
    rows = {row["name"]: row for row in vitslim("list", "targets", "--json").document}
    assert set(rows) == {one.name for one in list_targets()} >= {"onnx", "tensorrt", "triton-server"}
    assert (rows["onnx"]["suffix"], rows["tensorrt"]["missing"]) == (".onnx", ["tensorrt"])
    assert "missing tensorrt: pip install 'vitslim[tensorrt]'" in vitslim("list", "targets").out


def test_what_int8_needs_too_is_shown_where_it_is_missing(vitslim: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitslim.targets.base.find_spec", lambda name: None if name == "nncf" else find_spec(name))
    state = " ".join(vitslim("list", "targets", "openvino").out.split())
    assert "int8 also needs nncf: pip install 'vitslim[openvino]'" in state
    monkeypatch.setattr("vitslim.targets.base.find_spec", lambda _: True)
    assert "nncf" not in vitslim("list", "targets").out


@pytest.mark.parametrize("name", ["openvino-server", "triton-server"])
def test_a_server_has_the_precision_of_its_file(name: str, vitslim: Command) -> None:
    assert re.search(r"precisions +that of the file", vitslim("list", "targets", name).out)
    assert vitslim("list", "targets", name, "--json").document["precisions"] == []


def test_engines_take_a_range_of_image_sizes_where_the_method_allows(vitslim: Command) -> None:
    shown = vitslim("list", "targets", "tensorrt-rtx").out
    assert shown.split()[0] == "rtx"
    assert re.search(r"^skipat +yes, a range: --image-size ", shown, re.MULTILINE)
    assert re.search(r"^merge +no: how many patches", shown, re.MULTILINE)
    assert "not in this target" not in shown


def test_a_target_is_shown_with_its_options_and_what_becomes_of_each_method(vitslim: Command) -> None:
    found = vitslim("list", "targets", "onnx", "--json").document
    assert {"opset", "inline", "fp32_modules"} <= set(found["options"])
    methods = {row["form"]: row for row in found["methods"]}
    assert methods.keys() == method_forms().keys()
    assert methods["mlp"] == {"form": "mlp", "one_size": None, "chooses": False}
    assert methods["merge"]["chooses"]
    assert "no: how many patches" in vitslim("list", "targets", "onnx").out
    assert "no: not in this target" in vitslim("list", "targets", "torch-export").out
    assert "no: not in this target" not in vitslim("list", "targets", "tensorrt").out
    assert "did you mean 'onnx'" in vitslim("list", "targets", "onxx").error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["methods", "skipatt"], "unknown method 'skipatt'; did you mean 'skipat'?"),
        (["models", "skipat"], "list models takes no name, given 'skipat'; list methods and list targets do"),
        (["method"], "list 'method' is not known; did you mean 'methods'?"),
    ],
)
def test_a_misspelt_list_names_the_nearest(words: list[str], message: str, vitslim: Command) -> None:
    outcome = vitslim("list", *words)
    assert (outcome.code, outcome.error) == (2, message)


def test_aliases_are_listed_with_what_they_stand_for(vitslim: Command) -> None:
    assert vitslim("list", "aliases", "--json").document == ALIASES
    assert "deit_base_patch16_224.fb_in1k" in vitslim("list", "aliases").out


@pytest.fixture
def few_models(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["test_vit", "vit_relpos_small_patch16_224"]
    # The function of the same name hides the module in the package's public API.
    monkeypatch.setattr(sys.modules["vitslim.models.catalog"], "isotropic_names", lambda: names)


@pytest.mark.usefixtures("few_models")
def test_models_are_listed_with_the_reason_of_a_refusal(vitslim: Command) -> None:
    rows = vitslim("list", "models", "--json").document
    assert all(set(row) == {"name", "family", "supported", "reason"} for row in rows)
    found = {row["name"]: row for row in rows}
    assert found["test_vit"]["supported"]
    assert found["test_vit"]["reason"] == ""
    assert not found["vit_relpos_small_patch16_224"]["supported"]
    assert "has no adapter" in found["vit_relpos_small_patch16_224"]["reason"]


@pytest.mark.usefixtures("few_models")
def test_the_list_of_models_ends_in_a_count(vitslim: Command) -> None:
    outcome = vitslim("list", "models")
    assert "can be converted" in outcome.err
    assert "test_vit" in outcome.out


def test_the_pairs_that_compose_are_listed_with_their_reasons(vitslim: Command) -> None:
    rows = vitslim("list", "pairs", "--json").document
    assert {"first": "skipat", "second": "evo_vit", "family": "ViT", "supported": True, "reason": ""} in rows
    assert all(bool(row["reason"]) != row["supported"] for row in rows)
    table = vitslim("list", "pairs")
    assert all(f"\n{name} " in table.out for name in METHOD_NAMES)
    assert "prune: step 1 already has a rule for its tokens" in table.err


def test_an_unknown_list_is_refused(vitslim: Command) -> None:
    outcome = vitslim("list", "colours")
    assert outcome.code == 2
    assert outcome.error == "list 'colours' is not known; wanted models, methods, targets, aliases, pairs"


# --- inspect --------------------------------------------------------------------------------------------------------


def test_a_dense_model_is_inspected_without_weights(vitslim: Command) -> None:
    found = vitslim("inspect", "deit_small", "--json").document
    assert found["model"] == "deit_small_patch16_224.fb_in1k"
    assert found["params"] == 22_050_664  # timm's own figure
    assert found["macs"] == pytest.approx(4.6e9, rel=0.01)  # DeiT paper: 4.6 G
    assert found["image_size"] == [224, 224]
    assert (found["plan"], found["steps"]) == (None, [])
    assert found["methods"]["skipat"] == {"supported": True, "reason": ""}
    assert set(found["methods"]) == set(METHOD_NAMES)


def test_a_size_is_inspected_as_height_by_width(vitslim: Command) -> None:
    found = vitslim("inspect", "vit_tiny_patch16_224", "--img-size", "64x32", "--json").document
    assert (found["image_size"], found["grid"]) == ([64, 32], [4, 2])


def test_a_saved_student_is_inspected_with_its_plan(student: Path, vitslim: Command) -> None:
    found = vitslim("inspect", student, "--json").document
    assert [entry["method"] for entry in found["conversions"]] == ["skipat"]
    assert found["plan"] == plan_json(plan_of(checkpoint.load(student)))
    assert found["steps"][2]["attention"].startswith("reuse")
    assert sum(step["macs"] for step in found["steps"]) < found["macs"]
    assert not found["methods"]["skipat"]["supported"]
    assert "already converted" in found["methods"]["skipat"]["reason"]


def test_the_tables_have_no_blank_header_and_no_trailing_blanks(student: Path, vitslim: Command) -> None:
    outcome = vitslim("inspect", student)
    lines = outcome.out.splitlines()
    (header,) = (line for line in lines if line.startswith("step "))
    assert header.endswith("MACs (M)  parameters (k)  activations (k)")
    assert lines[1].endswith("student  (VisionTransformer)")
    assert re.match(r"parameters +0\.1", lines[2])
    assert all(line == line.rstrip() for line in lines)
    assert outcome.err == ""


def test_an_unsupported_model_is_described_and_the_reason_noted(vitslim: Command) -> None:
    outcome = vitslim("inspect", "vit_relpos_small_patch16_224", "--json")
    assert outcome.code == 0
    assert outcome.document["methods"]["skipat"]["supported"] is False
    assert "VisionTransformerRelPos has no adapter" in outcome.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["deit_smal"], "unknown model 'deit_smal'; did you mean 'deit_small'"),
        (["nowhere/model"], "nowhere/model is neither a folder nor a file that vitslim wrote"),
        (["deit_small", "--img-size", "big"], "--img-size 'big': wanted pixels such as 384 or 256x128"),
        (["deit_small", "--img-size", "0"], "--img-size '0': wanted pixels"),
        (["deit_small", "--img-size", "²"], "--img-size '²': wanted pixels"),
        (["deit_small", "--img-size", "9" * 5000], "wanted pixels"),
        (["vit_tiny_patch16_224.nonsense"], "has no weights 'vit_tiny_patch16_224.nonsense'"),
    ],
)
def test_what_cannot_be_inspected_says_why(words: list[str], message: str, vitslim: Command) -> None:
    outcome = vitslim("inspect", *words)
    assert outcome.code == 2
    assert message in outcome.error


def test_what_a_method_would_make_is_told_from_its_plan(tmp_path: Path, vitslim: Command, monkeypatch) -> None:
    monkeypatch.setattr(sys.modules["vitslim.trunk.build"], "_trunk", None)  # nothing is built
    words = ("inspect", "deit_small", "--method", "depth", "--method", "skipat", "--set", "depth.keep=8")
    words = (*words, "-O", "skipat.layers=2", "--json")
    found = vitslim(*words).document
    dense = cost(plan_of(open_shape("deit_small")))
    assert found["dense"] == {"params": dense.parameters, "macs": dense.macs, "activations": dense.activations}
    assert len(found["steps"]) == found["depth"] == 8
    assert found["steps"][2]["attention"].startswith("reuse")
    assert found["macs"] < 0.67 * dense.macs
    assert found["activations"] == max(step["activations"] for step in found["steps"])
    assert [entry["method"] for entry in found["conversions"]] == ["depth", "skipat"]
    assert found["choices"][-1]["reason"] == "the options name them"
    # The same plan again, as a file, and from Python.
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(found["plan"]))
    again = vitslim("inspect", "deit_small", "--plan", plan)
    share = f"{100 * found['macs'] / dense.macs:.1f} % of dense"
    assert re.search(rf"\nMACs +{found['macs'] / 1e9:.3f} G at 224 × 224, {share}\n", again.out)
    assert package.inspect("deit_small", plan=plan).model_dump(mode="json")["steps"] == found["steps"]


def test_python_says_of_a_method_what_the_command_says(vitslim: Command) -> None:
    said = vitslim("inspect", "deit_tiny", "--method", "skipat", "--json")
    assert "because they are the usual ones, and no analysis was made" in said.err
    for found in (package.inspect("deit_tiny", "skipat"), package.inspect("deit_tiny", package.SkipAtConfig())):
        assert found.model_dump(mode="json") == said.document
    with pytest.raises(ConfigError, match="belong to a method"):
        package.inspect("deit_tiny", keep=8)


def test_a_plan_that_is_refused_is_told_with_every_reason(student: Path, tmp_path: Path, vitslim: Command) -> None:
    given = [("--method", "skipat", "--set", "layers=0"), ("--method", "merge", "-O", "r=90")]
    for words, reason in zip(given, ("block 0 has no earlier attention", "give at most"), strict=True):
        outcome = vitslim("inspect", "deit_tiny", *words)
        assert (outcome.code, outcome.out) == (2, "")
        assert reason in outcome.error
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(plan_json(plan_of(checkpoint.load(student)))))
    outcome = vitslim("inspect", "deit_tiny", "--plan", plan)
    assert (outcome.code, outcome.out) == (2, "")
    assert "the plan is for another model" in outcome.error


def test_a_saved_student_keeps_its_size(student: Path, vitslim: Command) -> None:
    outcome = vitslim("inspect", student, "--img-size", "64")
    assert outcome.code == 2
    assert "is a saved model, which knows its own img_size" in outcome.error


# --- analyze --------------------------------------------------------------------------------------------------------


def test_an_analysis_is_written_and_printed(dense: Path, tmp_path: Path, vitslim: Command) -> None:
    words = ("--data", IMAGES, "--images", 16, "--replacement-images", 8, "--out", tmp_path / "an")
    outcome = vitslim("analyze", dense, *words, "--json")
    assert outcome.code == 0
    found = outcome.document
    assert len(found["layers"]) == 4
    assert set(found["cka"]) == {"z", "cls_attention", "block"}
    assert len(found["linear_r2"]) == 4
    assert {"layer", "kind", "kl", "top1_agreement"} <= set(found["replacement"][0])
    assert {"layers", "reason"} <= set(found["recommended"])
    assert (tmp_path / "an" / "analysis.json").is_file()
    assert list((tmp_path / "an" / "plots").glob("*.svg"))
    table = vitslim("analyze", dense, *words, "--overwrite")
    assert "recommended" in table.out
    assert f"{found['block_influence'][0]:.3f}" in table.out
    assert "Attention to reuse: " in table.err
    assert f"Blocks to drop: {', then '.join(map(str, found['drop_order']))}; " in table.err
    assert vitslim("analyze", dense, *words).error.startswith(f"output folder {tmp_path}/an is not empty")


@pytest.mark.parametrize("content", ["nothing", "an empty folder", "text"])
def test_images_that_are_not_there_are_refused(content: str, dense: Path, tmp_path: Path, vitslim: Command) -> None:
    data = tmp_path / "images"
    if content != "nothing":
        (data / "ant").mkdir(parents=True)
    if content == "text":
        (data / "ant" / "a.png").write_text("not an image")
        (data / "ant" / "b.png").write_text("not an image")
    outcome = vitslim("analyze", dense, "--data", data, "--images", 4, "--out", tmp_path / "an")
    assert outcome.code == 2
    assert "images" in outcome.error
    assert not (tmp_path / "an").exists()


def test_a_converted_model_is_not_analyzed(student: Path, tmp_path: Path, vitslim: Command) -> None:
    outcome = vitslim("analyze", student, "--data", IMAGES, "--images", 16, "--out", tmp_path / "an")
    assert outcome.code == 2
    assert "dense" in outcome.error


# --- doctor ---------------------------------------------------------------------------------------------------------


def test_the_doctor_names_versions_devices_and_what_is_missing(
    vitslim: Command, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr("vitslim.cli.inspect.find_spec", lambda name: None if name == "onnx" else find_spec(name))
    found = vitslim("doctor", "--json").document
    assert {"vitslim", "torch", "timm"} <= set(found["versions"])
    assert found["devices"][0] == "cpu"
    assert found["purposes"]["training"]["ready"]
    needs = found["purposes"]["ONNX export and verify"]
    assert needs == {"ready": False, "missing": ["onnx"], "install": "pip install 'vitslim[onnx]'"}
    assert "pip install 'vitslim[onnx]'" in vitslim("doctor").out


def test_the_doctor_asks_only_for_what_vitslim_imports(vitslim: Command) -> None:
    sources = "\n".join(path.read_text() for path in Path(package.__file__).parent.rglob("*.py"))
    for _, modules in _OPTIONAL.values():
        for name in modules:
            assert re.search(rf"(import|from) {name}\b|import_module\(\"{name}\"|[\"']{name}[.\"']", sources), name
