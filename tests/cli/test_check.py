"""eval, export, verify, bench, report."""

import builtins
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from PIL import Image

from tests.cli.conftest import TINY, Command
from tests.pipeline.tiny import IMAGES
from vitslim import checkpoint
from vitslim.cli.screen import say_skipped
from vitslim.files import read_json
from vitslim.names import BUILTIN


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a library look as if it were not installed."""
    real = builtins.__import__

    def hide(*names: str) -> None:
        def fail(name: str, *args: Any, **kwargs: Any) -> Any:
            if name.split(".")[0] in names:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", fail)

    return hide


# --- eval -----------------------------------------------------------------------------------------------------------


def test_a_student_is_measured_beside_its_teacher(student: Path, dense: Path, vitslim: Command) -> None:
    outcome = vitslim("eval", student, "--data", IMAGES, "--teacher", dense, "--json")
    assert outcome.code == 0
    assert {"model", "images", "top1", "top5", "agreement", "kl"} <= set(outcome.document)
    assert outcome.document["images"] == 16
    table = vitslim("eval", student, "--data", IMAGES, "--limit", 8)
    assert "agreement with the teacher" in table.out


@pytest.fixture
def damaged_images(tmp_path: Path) -> Path:
    """A hundred images each to train and to measure on, of which one of each cannot be read."""
    root = tmp_path / "images"
    for split in ("train", "val"):
        for number in range(100):
            path = root / split / f"class{number % 4}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (32, 32), (number, 0, 0)).save(path)
        (root / split / "class1" / "1.png").write_text("no image")
    return root


def test_images_that_are_skipped_are_told(student: Path, damaged_images: Path, vitslim: Command) -> None:
    words = ("eval", student, "--data", damaged_images)
    assert "1 held-out image could not be read and was skipped: class1/1.png" in vitslim(*words).err
    found = vitslim(*words, "--json").document
    assert (found["images"], found["corrupt"], found["examples"]) == (99, 1, ["class1/1.png"])


def test_training_tells_of_skipped_images_too(
    student: Path, damaged_images: Path, tmp_path: Path, vitslim: Command
) -> None:
    short = ("--batch-size", 50, "--set", "distill.tensorboard=false", "--set", "distill.precision=no")
    words = (
        "--data",
        damaged_images,
        "--set",
        "analyze=null",
        "--set",
        "warm_start=null",
        "--set",
        "report=false",
        "--epochs",
        1,
        *short,
    )
    told = vitslim("convert", BUILTIN, "--method", "skipat", "--out", tmp_path / "converted", *TINY, *words).err
    assert "1 training image could not be read and was skipped: class1/1.png" in told
    assert "1 held-out image could not be read and was skipped: class1/1.png" in told
    words = ("--data", damaged_images, "--epochs", 1, "--batch-size", 50, "--set", "tensorboard=false")
    found = vitslim("train", student, *words, "--out", tmp_path / "trained", "--json").document
    assert (found["result"]["corrupt"], found["result"]["examples"]) == (1, ["class1/1.png"])
    assert found["metrics"]["student"]["corrupt"] == 1


def test_several_skipped_images_are_told_with_the_first_names(capsys: pytest.CaptureFixture[str]) -> None:
    say_skipped({"corrupt": 3, "examples": ["a.png", "b.png"]}, "training")
    say_skipped({"corrupt": 0, "examples": []}, "training")
    told = capsys.readouterr().err
    assert told == "3 training images could not be read and were skipped, among them a.png, b.png\n"


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_model_with_nan_is_no_result(words: list[str], copied: Path, vitslim: Command) -> None:
    model = checkpoint.load(copied)
    model.get_parameter("norm.weight").data[5] = torch.nan
    checkpoint.save(model, copied, overwrite=True)
    outcome = vitslim("eval", copied, "--data", IMAGES, *words)
    assert (outcome.code, outcome.out) == (1, "")
    assert "the class scores of 16 of 16 images are NaN or infinite; the model's norm.weight holds NaN" in outcome.error


def test_a_teacher_of_another_image_size_is_one_line(student: Path, vitslim: Command) -> None:
    outcome = vitslim("eval", student, "--data", IMAGES, "--teacher", "builtin")
    assert outcome.code == 2
    assert "the teacher takes images of 3x64x64" in outcome.error
    assert "the data is prepared as 3x32x32" in outcome.error


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("fractals:classes=3,train_per_class=2,val_per_class=2,image_size=32", "given 3 classes, model has 4 outputs"),
        ("/nowhere", "/nowhere does not exist"),
        ("fractals:classes=many", "classes='many' is not a number"),
    ],
)
def test_images_that_do_not_fit_are_refused(data: str, message: str, student: Path, vitslim: Command) -> None:
    outcome = vitslim("eval", student, "--data", data)
    assert outcome.code == 2
    assert message in outcome.error


# --- export ---------------------------------------------------------------------------------------------------------


def test_a_student_is_exported_once(copied: Path, vitslim: Command) -> None:
    (copied / "export" / "model.onnx").unlink()
    found = vitslim("export", copied, "--json").document
    assert found["file"].endswith("model.onnx")
    assert found["precision"] == "fp32"
    again = vitslim("export", copied)
    assert again.code == 2
    assert "export/model.onnx exists; pass --overwrite or another --out" in again.error
    assert "check it with `vitslim verify" in vitslim("export", copied, "--overwrite").err


def test_every_form_of_a_file_has_its_own_name(copied: Path, vitslim: Command) -> None:
    (copied / "export" / "model.onnx").unlink()
    for words, name in [
        ([], "model.onnx"),
        (["--inline"], "model-inlined.onnx"),
        (["--input-format", "uint8-nhwc", "--precision", "fp16"], "model-uint8-nhwc-fp16.onnx"),
    ]:
        assert vitslim("export", copied, *words, "--json").document["file"] == name
    found = vitslim("verify", copied, "--images", 4, "--batch", "2", "--json")
    assert found.code == 0
    assert [check["artifact"] for check in found.document["checks"]] == [
        "model-inlined.onnx",
        "model-uint8-nhwc-fp16.onnx",
        "model.onnx",
    ]
    evaluated = vitslim("eval", copied, "--data", IMAGES, "--backend", "ort", "--json")
    assert evaluated.code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "onxx"], "unknown target 'onxx'; did you mean 'onnx'?"),
        (["--input-format", "png"], "input_format='png': Input should be 'normalized', 'uint8-nchw' or 'uint8-nhwc'"),
        (["--precision", "int8"], "target 'onnx' is not written in int8; wanted fp32, fp16, bf16"),
        (["--refit", "--set", "batch=4"], "target 'onnx' takes no refit; its options are batch, opset"),
        (["--set", "opset"], "--set 'opset': wanted KEY=VALUE"),
    ],
)
def test_an_export_that_is_not_known_is_refused(
    words: list[str], message: str, student: Path, tmp_path: Path, vitslim: Command
) -> None:
    outcome = vitslim("export", student, *words, "--out", tmp_path / "x.onnx")
    assert outcome.code == 2
    assert message in outcome.error


@pytest.mark.parametrize("command", ["export", "verify"])
def test_a_folder_that_holds_no_model_is_refused(command: str, tmp_path: Path, vitslim: Command) -> None:
    assert f"{tmp_path} holds no config.json; wanted a folder that vitslim wrote" in vitslim(command, tmp_path).error
    assert "nowhere does not exist" in vitslim(command, tmp_path / "nowhere").error


def test_an_absent_library_has_its_own_exit_code(
    student: Path, tmp_path: Path, vitslim: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["vitslim.targets.onnx.export"], "find_spec", lambda name: None)
    outcome = vitslim("export", student, "--out", tmp_path / "x.onnx")
    assert outcome.code == 3
    assert "pip install 'vitslim[onnx]'" in outcome.error


# --- verify ---------------------------------------------------------------------------------------------------------


def test_an_exported_file_is_compared_with_its_model(copied: Path, vitslim: Command) -> None:
    outcome = vitslim("verify", copied, "--images", 4, "--json")
    assert outcome.code == 0
    checks = outcome.document["checks"]
    assert [check["batch"] for check in checks] == [1, 3]
    for check in checks:
        assert {"artifact", "max_abs", "mean_abs", "cosine", "top1_agreement", "tolerance", "passed"} <= set(check)
        assert check["passed"]
        assert check["max_abs"] <= check["tolerance"]
    assert read_json(copied / "export" / "parity.json") == outcome.document
    table = vitslim("verify", copied, "--images", 4, "--batch", "2", "--data", IMAGES)
    assert "same top-1" in table.out
    assert "yes" in table.out


def tamper_with_file(folder: Path) -> None:
    path = folder / "export" / "model.onnx"
    model = onnx.load(path)
    for weight in model.graph.initializer:
        values = numpy_helper.to_array(weight)
        if values.dtype.kind == "f" and values.size > 100:
            weight.CopyFrom(numpy_helper.from_array(values * 1.05, weight.name))
            break
    onnx.save(model, path)


def tamper_with_model(folder: Path) -> None:
    model = checkpoint.load(folder)
    with torch.no_grad():
        model.head.bias += 1.0
    checkpoint.save(model, folder, overwrite=True)


@pytest.mark.parametrize("tamper", [tamper_with_file, tamper_with_model])
def test_a_file_out_of_tolerance_fails_the_check(tamper: Any, copied: Path, vitslim: Command) -> None:
    tamper(copied)
    outcome = vitslim("verify", copied, "--images", 4, "--json")
    assert outcome.code == 1
    assert not outcome.document["passed"]
    assert "largest difference" in outcome.error
    assert "NO" in vitslim("verify", copied, "--images", 4).out


def test_a_broken_promise_is_said_once_for_all_batches(copied: Path, vitslim: Command) -> None:
    path = copied / "export" / "model.onnx"
    model = onnx.load(path)
    onnx.helper.set_model_props(
        model, {entry.key: entry.value for entry in model.metadata_props} | {"precision": "bf16"}
    )
    onnx.save(model, path)
    outcome = vitslim("verify", copied, "--images", 4)
    assert outcome.code == 1
    assert "model.onnx, batch 1 and batch 3: it says bf16 of itself, exported was fp32" in outcome.error
    assert outcome.error.count("it says bf16") == 1
    assert vitslim("verify", copied, "--precision", "fp64").code == 2


def test_a_model_of_nan_gets_a_verdict(copied: Path, vitslim: Command) -> None:
    model = checkpoint.load(copied)
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    checkpoint.save(model, copied, overwrite=True)
    outcome = vitslim("verify", copied, "--images", 4, "--json")
    assert outcome.code == 1
    assert not outcome.document["passed"]
    assert "the model itself gives NaN or infinity for 4 of 4 images" in outcome.error


def test_a_folder_that_cannot_be_written_still_gets_its_verdict(copied: Path, vitslim: Command) -> None:
    (copied / "export" / "parity.json").unlink(missing_ok=True)
    (copied / "export" / "parity.json").mkdir()
    outcome = vitslim("verify", copied, "--images", 4, "--json")
    assert outcome.code == 0
    assert any("parity.json cannot be written" in note for note in outcome.document["notes"])


def test_a_corrupt_file_is_named(copied: Path, vitslim: Command) -> None:
    (copied / "export" / "model.onnx").write_bytes(b"not a model")
    outcome = vitslim("verify", copied, "--images", 4)
    assert outcome.code == 2
    assert "model.onnx" in outcome.error


def test_nothing_exported_says_what_to_run(dense: Path, vitslim: Command) -> None:
    outcome = vitslim("verify", dense)
    assert outcome.code == 2
    assert f"run `vitslim export {dense} --to onnx` first" in outcome.error


def test_a_missing_file_is_named(student: Path, vitslim: Command) -> None:
    outcome = vitslim("verify", student, student / "export" / "nothing.onnx")
    assert outcome.code == 2
    assert "nothing.onnx" in outcome.error


@pytest.mark.parametrize("batch", ["0", "a", "", "1,-3"])
def test_batches_are_whole_numbers(batch: str, student: Path, vitslim: Command) -> None:
    outcome = vitslim("verify", student, "--batch", batch)
    assert outcome.code == 2
    assert "wanted whole numbers from 1, such as 1,8" in outcome.error


# --- bench ----------------------------------------------------------------------------------------------------------

QUICK = ("--rounds", 5, "--threads", 1)
ROW = {
    "model",
    "backend",
    "precision",
    "batch",
    "latency_ms_p50",
    "latency_ms_p90",
    "throughput_img_s",
    "speedup_vs_dense",
    "params",
    "macs",
}


def test_a_student_is_benchmarked_beside_its_dense_model(copied: Path, vitslim: Command) -> None:
    words = ("--baseline", "dense", "--backend", "torch,ort", "--batch", "1,2", *QUICK, "--json")
    outcome = vitslim("bench", copied, *words)
    assert outcome.code == 0, outcome.err
    found = outcome.document
    assert {"environment", "rows"} <= set(found)
    assert {(row["model"], row["backend"], row["batch"]) for row in found["rows"]} == {
        (model, backend, batch) for model in ("dense", "copied") for backend in ("torch", "ort") for batch in (1, 2)
    }
    assert all(set(row) >= ROW for row in found["rows"])
    assert all(row["speedup_vs_dense"] == 1.0 for row in found["rows"] if row["model"] == "dense")
    assert read_json(copied / "bench.json") == found


def test_a_result_that_could_not_be_written_is_refused_before_it_is_measured(
    student: Path, tmp_path: Path, vitslim: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitslim.pipeline.benchmark", None)
    (tmp_path / "file").write_text("")
    outcome = vitslim("bench", student, "--out", tmp_path / "file" / "b.json", *QUICK)
    assert outcome.code == 2
    assert f"{tmp_path / 'file'} is a file" in outcome.error


def test_the_table_names_machine_and_baseline(student: Path, dense: Path, tmp_path: Path, vitslim: Command) -> None:
    words = ("--baseline", dense, "--backend", "torch", "--batch", 1, "--out", tmp_path / "b.json", *QUICK)
    outcome = vitslim("bench", student, *words)
    assert outcome.code == 0, outcome.err
    assert "speed-up against 'dense' with fused attention in the same run" in outcome.out
    assert {row["model"] for row in read_json(tmp_path / "b.json")["rows"]} == {"dense", "student"}
    assert not (student / "bench.json").exists()


def test_two_folders_of_one_name_get_a_row_each(student: Path, copied: Path, tmp_path: Path, vitslim: Command) -> None:
    twin = Path(shutil.copytree(student, tmp_path / "other" / "copied"))
    words = ("--backend", "torch", "--batch", 1, "--out", tmp_path / "b.json", *QUICK)
    assert vitslim("bench", copied, twin, *words).code == 0
    assert {row["model"] for row in read_json(tmp_path / "b.json")["rows"]} == {"dense", str(copied), str(twin)}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--backend", "tensorflow"], 2, "backends.0"),
        (["--precision", "fp8"], 2, "precisions.0"),
        (["--batch", "x"], 2, "--batch 'x': wanted whole numbers"),
        (["--baseline", "deit_smal"], 2, "unknown model 'deit_smal'; did you mean"),
    ],
)
def test_a_benchmark_that_cannot_run_is_one_line(
    words: list[str], code: int, message: str, student: Path, vitslim: Command
) -> None:
    outcome = vitslim("bench", student, *words)
    assert (outcome.code, message in outcome.error) == (code, True), outcome.err


def test_a_benchmark_without_its_only_backend_is_a_missing_dependency(
    student: Path, tmp_path: Path, vitslim: Command, without: Any
) -> None:
    without("onnxruntime")
    outcome = vitslim("bench", student, "--backend", "ort", "--batch", 1, "--out", tmp_path / "b.json", *QUICK)
    assert outcome.code == 3
    assert "nothing could be measured: ort fp32" in outcome.error
    assert not (tmp_path / "b.json").exists()


# --- report ---------------------------------------------------------------------------------------------------------


def test_a_report_is_rendered_again(copied: Path, vitslim: Command) -> None:
    outcome = vitslim("report", copied)
    assert outcome.code == 0
    assert outcome.err.startswith(f"wrote {copied}/report.html")
    assert "http" not in (copied / "report.html").read_text().split("<body")[0]


def test_a_report_of_nothing_is_refused(tmp_path: Path, vitslim: Command) -> None:
    assert vitslim("report", tmp_path).code == 2
    assert vitslim("report", tmp_path / "nowhere").error.endswith("nowhere does not exist")
