"""export to servers and programs, quantize."""

import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.pipeline.tiny import IMAGES
from tests.targets.triton_schema import parse
from vitslim.files import read_json, write_json
from vitslim.targets.openvino.server import MODELS


def test_a_student_becomes_a_model_repository(student: Path, tmp_path: Path, vitslim: Command) -> None:
    words = ("export", student, "--to", "triton-server", "--out", tmp_path / "models", "--max-batch", 16)
    outcome = vitslim(*words, "--json")
    assert outcome.code == 0, outcome.err
    assert (outcome.document["name"], outcome.document["max_batch_size"]) == ("student", 16)
    for file in outcome.document["files"]:
        assert (tmp_path / "models" / file).is_file()
    assert parse((tmp_path / "models/student/config.pbtxt").read_text()).backend == "onnxruntime"
    again = vitslim(*words)
    assert again.code == 2
    assert "has a model 'student' already; pass --overwrite" in again.error
    assert vitslim("verify", student, tmp_path / "models" / "student", "--images", 3).code == 0
    said = vitslim(*words, "--overwrite").err
    assert "tritonserver --model-repository=/models" in said


def test_a_student_is_served_by_openvino(copied: Path, tmp_path: Path, vitslim: Command) -> None:
    pytest.importorskip("openvino")
    words = ("export", copied, "--to", "openvino-server", "--out", tmp_path / "models")
    assert "run `vitslim export" in vitslim(*words).error
    assert not (tmp_path / "models").exists()
    assert vitslim("export", copied, "--to", "openvino", "--precision", "bf16").code == 0
    outcome = vitslim(*words, "--name", "one", "--json")
    assert outcome.code == 0, outcome.err
    assert all((tmp_path / "models" / file).is_file() for file in outcome.document["files"])
    assert "has a model 'one' already; pass --overwrite" in vitslim(*words, "--name", "one").error
    assert vitslim(*words, "--name", "two", "--set", "mode=latency").code == 0
    assert vitslim(*words, "--name", "one", "--overwrite").code == 0
    listed = {one["config"]["name"]: one["config"] for one in read_json(tmp_path / "models/config.json")[MODELS]}
    assert list(listed) == ["two", "one"]
    assert listed["one"]["base_path"] == "/models/one"
    assert listed["one"]["plugin_config"] == {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "bf16"}
    assert listed["two"]["plugin_config"]["PERFORMANCE_HINT"] == "LATENCY"
    readme = (tmp_path / "models/one/README.md").read_text()
    assert "--config_path /models/config.json" in readme
    assert "normalised with mean" in readme
    assert vitslim("verify", copied, tmp_path / "models" / "one", "--images", 3).code == 0
    write_json(tmp_path / "models/config.json", {})
    broken = vitslim(*words, "--name", "three")
    assert broken.code == 2
    assert "config.json has no list 'model_config_list'" in broken.error
    assert not (tmp_path / "models" / "three").exists()
    assert vitslim("export", copied, "--to", "openvino").code == 0
    assert "model-bf16.xml, model.xml; name the one to serve (--artifact)" in vitslim(*words, "--overwrite").error


def test_a_student_becomes_a_program(copied: Path, vitslim: Command) -> None:
    outcome = vitslim("export", copied, "--to", "torch-export", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.document["file"] == str(copied / "export" / "model.pt2")
    assert all(check["max_abs"] <= check["tolerance"] for check in outcome.document["comparisons"])
    assert "exists; pass --overwrite" in vitslim("export", copied, "--to", "torch-export").error
    found = vitslim("verify", copied, "--images", 3, "--json").document
    assert {(check["artifact"], check["backend"]) for check in found["checks"]} == {
        ("model.onnx", "ort"),
        ("model.pt2", "torch-export"),
    }
    only = vitslim("verify", copied, "--images", 3, "--backend", "onnx", "--json").document
    assert {check["artifact"] for check in only["checks"]} == {"model.onnx"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "triton-server"], "export to triton-server needs a path (--out)"),
        (["--to", "triton-server", "--out", "OUT", "--name", "a b"], "model name 'a b': wanted up to 128 letters"),
        (["--to", "triton-server", "--out", "OUT", "--backend", "openvino"], "backend 'openvino' is not known"),
        (["--to", "triton-server", "--out", "OUT", "--backend", "tensorrt"], "--to tensorrt` first"),
        (["--to", "triton-server", "--out", "OUT", "--max-batch", "0"], "max_batch=0: wanted a number from 1"),
        (
            ["--to", "triton-server", "--out", "OUT", "--precision", "fp16"],
            "(--to onnx or tensorrt --precision fp16), then",
        ),
        (["--to", "openvino-server", "--out", "OUT", "--precision", "bf16"], "export that first (--to openvino --prec"),
        (["--to", "triton-server", "--out", "OUT", "--artifact", "no.onnx"], "no.onnx does not exist"),
        (["--to", "torch-export", "--out", "OUT.pt2", "--max-batch", "8"], "target 'torch-export' takes no max_batch"),
        (["--to", "torch-export", "--out", "OUT.onnx"], "torch.export program ends in .pt2; wanted such a path"),
        (["--to", "aotinductor", "--out", "OUT.pt2", "--device", "tpu"], "device 'tpu' is not one"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    words: list[str], message: str, student: Path, tmp_path: Path, vitslim: Command
) -> None:
    outcome = vitslim("export", student, *(word.replace("OUT", str(tmp_path / "out")) for word in words))
    assert outcome.code == 2
    assert message in outcome.error
    assert not list(tmp_path.iterdir())


def test_nothing_exported_says_what_to_run(dense: Path, tmp_path: Path, vitslim: Command) -> None:
    deployed = vitslim("export", dense, "--to", "triton-server", "--out", tmp_path)
    quantized = vitslim("quantize", dense, "--data", IMAGES)
    for outcome in (deployed, quantized):
        assert outcome.code == 2
        assert f"run `vitslim export {dense} --to onnx` first" in outcome.error


@pytest.mark.parametrize("command", [["export", "--to", "triton-server", "--out", "x"], ["quantize", "--data", IMAGES]])
def test_a_folder_that_holds_no_model_is_refused(command: list[str], tmp_path: Path, vitslim: Command) -> None:
    assert "wanted " in vitslim(command[0], tmp_path, *command[1:]).error
    assert "nowhere" in vitslim(command[0], tmp_path / "nowhere", *command[1:]).error


def test_a_missing_model_optimizer_has_its_own_exit_code(student: Path, tmp_path: Path, vitslim: Command) -> None:
    words = ("--data", IMAGES, "--modelopt-python", tmp_path / "python", "--out", tmp_path / "q.onnx")
    outcome = vitslim("quantize", student, *words)
    assert outcome.code == 3
    assert "pip install 'nvidia-modelopt[onnx]>=0.47'" in outcome.error
    assert not list(tmp_path.iterdir())


def test_a_quantization_that_is_not_known_is_refused(student: Path, vitslim: Command) -> None:
    outcome = vitslim("quantize", student, "--data", IMAGES, "--precision", "int4")
    assert outcome.code == 2
    assert "precision 'int4' is not offered; wanted fp8 or int8" in outcome.error


def test_the_help_of_quantize_names_the_way_for_cpus(vitslim: Command) -> None:
    said = " ".join(vitslim("quantize", "--help").out.split())
    assert "For CPUs use `vitslim export DIR --precision int8`" in said


def test_an_artifact_of_another_kind_is_refused(copied: Path, tmp_path: Path, vitslim: Command) -> None:
    shutil.copy(copied / "export/model.onnx", copied / "export/second.onnx")
    words = ("--to", "triton-server", "--out", tmp_path / "models")
    assert "say which with --artifact" in vitslim("export", copied, *words).error
    file = copied / "export/second.onnx"
    refused = vitslim("export", copied, *words, "--artifact", file, "--backend", "tensorrt")
    assert "second.onnx is no file for backend tensorrt" in refused.error
    assert vitslim("export", copied, *words, "--artifact", file).code == 0
