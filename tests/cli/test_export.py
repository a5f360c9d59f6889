"""export to ONNX, verify."""

import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper

from tests.cli.conftest import Command
from tests.pipeline.tiny import IMAGES
from tests.targets.test_bisect import overflowing
from vitslim import checkpoint
from vitslim.files import read_json

# --- export ----------------------------------------------------------------------------------------------------------


def test_a_model_is_exported_once(one_block: Path, vitslim: Command) -> None:
    found = vitslim("export", one_block, "--json").document
    assert found["file"].endswith("model.onnx")
    assert found["precision"] == "fp32"
    again = vitslim("export", one_block)
    assert again.code == 2
    assert "export/model.onnx exists; pass --overwrite or another --out" in again.error
    assert "check it with `vitslim verify" in vitslim("export", one_block, "--overwrite").err


def test_every_form_of_a_file_has_its_own_name(one_block: Path, vitslim: Command) -> None:
    for words, name in [
        ([], "model.onnx"),
        (["--inline"], "model-inlined.onnx"),
        (["--input-format", "uint8-nhwc", "--precision", "fp16"], "model-uint8-nhwc-fp16.onnx"),
    ]:
        assert vitslim("export", one_block, *words, "--json").document["file"] == name
    found = vitslim("verify", one_block, "--images", 4, "--batch", "2", "--json")
    assert found.code == 0
    assert [check["artifact"] for check in found.document["checks"]] == [
        "model-inlined.onnx",
        "model-uint8-nhwc-fp16.onnx",
        "model-uint8-nhwc-fp16.onnx",  # as written, and rounded
        "model.onnx",
    ]
    evaluated = vitslim("eval", one_block, "--data", IMAGES, "--backend", "ort", "--json")
    assert evaluated.code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "onxx"], "unknown target 'onxx'; did you mean 'onnx'?"),
        (["--input-format", "png"], "input_format='png': Input should be 'normalized', 'uint8-nchw' or 'uint8-nhwc'"),
        (["--precision", "int8"], "int8 takes its ranges from images of the task and is judged on them; name them"),
        (["--to", "torch-export", "--precision", "int8"], "target 'torch-export' is not written in int8; wanted fp32"),
        (
            ["--precision", "fp8"],
            "`vitslim quantize DIR --data D --precision fp8` makes such an ONNX file for TensorRT",
        ),
        (["--to", "tensorrt", "--precision", "int8"], "wanted fp16, bf16, fp32; `vitslim quantize DIR"),
        (["--to", "tensorrt-rtx", "--precision", "fp8"], "target 'rtx' is not written in fp8; wanted fp16, bf16, fp32"),
        (["--to", "openvino", "--dynamic-image-size"], "are input_format; dynamic_image_size goes with --to onnx"),
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


# --- verify ----------------------------------------------------------------------------------------------------------


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


def test_a_broken_guarantee_is_reported_once_for_all_batches(copied: Path, vitslim: Command) -> None:
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
    outcome = vitslim("verify", copied, "--images", 4, "--bisect", "--json")
    assert outcome.code == 1
    assert not outcome.document["passed"]
    assert any("itself gives NaN or infinity, first seen at head" in note for note in outcome.document["notes"])
    assert "the model itself gives NaN or infinity for 4 of 4 images" in outcome.error


def test_a_file_whose_runtime_is_missing_is_left_out_unless_it_is_named(
    copied: Path, vitslim: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    (copied / "export" / "model.xml").write_text("<net/>")
    outcome = vitslim("verify", copied, "--images", 4, "--json")
    assert outcome.code == 0
    assert [check["artifact"] for check in outcome.document["checks"]] == ["model.onnx"] * 2
    assert any(note.startswith("model.xml was not compared: OpenVINO") for note in outcome.document["notes"])
    outcome = vitslim("verify", copied, copied / "export" / "model.xml", "--images", 4)
    assert outcome.code == 3
    assert "pip install 'vitslim[openvino]'" in outcome.error


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


def test_the_command_names_the_layer_and_the_remedy(tmp_path: Path, vitslim: Command) -> None:
    folder = tmp_path / "student"
    checkpoint.save(overflowing(), folder)
    assert vitslim("export", str(folder), "--precision", "fp16").code == 0
    done = vitslim("verify", str(folder), "--bisect")
    assert done.code == 1
    said = " ".join(done.err.split())
    assert "departs after blocks.1.attn.qkv, first seen at blocks.1.attn.proj" in said
    again = ("export", str(folder), "--precision", "fp16", "--set", "fp32_modules=[blocks.1.attn]", "--overwrite")
    assert vitslim(*again).code == 0
    assert vitslim("verify", str(folder), "--bisect", "--json").document["departures"] == []
