import shutil
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Command
from vitslim.runtime.tensorrt_api import installed_version


@pytest.fixture
def folder(copied: Path, tmp_path: Path) -> Path:
    """A saved student of which nothing was exported."""
    own = tmp_path / "own"
    shutil.copytree(copied, own, ignore=shutil.ignore_patterns("export"))
    return own


def test_options_of_engines_are_refused_for_onnx(folder: Path, vitslim: Command) -> None:
    outcome = vitslim("export", folder, "--refit", "--plugins", "off")
    assert outcome.code == 2
    assert "target 'onnx' takes no plugins, refit; its options are" in outcome.error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch", "1:8"], "batch='1:8': wanted min:opt:max such as 1:8:64"),
        (["--batch", "8:1:64"], "8:1:64 is not min:opt:max"),
        (["--to", "rtx", "--plugins", "on"], "ends the process when it meets a plugin"),
        (["--plugins", "inside"], "plugins"),
        (["--out", "model.plan"], "TensorRT-RTX engine ends in .engine"),
    ],
)
def test_what_no_engine_can_be_is_refused(folder: Path, vitslim: Command, options: list[str], message: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    outcome = vitslim("export", folder, "--to", "rtx", *options)
    assert outcome.code == 2
    assert message in outcome.error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_what_is_missing_for_tensorrt_is_named(folder: Path, vitslim: Command) -> None:
    outcome = vitslim("export", folder, "--to", "tensorrt", "--precision", "fp16")
    assert outcome.code == 3
    assert "target 'tensorrt' needs tensorrt: pip install 'vitslim[tensorrt]'" in outcome.error


def test_a_saved_model_becomes_an_engine_once(one_block: Path, vitslim: Command) -> None:
    if installed_version("rtx") is None:
        pytest.skip("TensorRT-RTX is not installed (vitslim[rtx]); no engine can be built here")
    words = ["export", one_block, "--to", "rtx", "--batch", "1:2:4"]
    made = vitslim(*words, "--json")
    # Without --precision an engine is in half.
    assert "precision fp16, the target's own" in " ".join(made.err.split())
    record = made.document
    engine = one_block / "export" / "model-fp16.engine"
    assert engine.stat().st_size > 0
    assert (record["flavor"], record["precision"]) == ("rtx", "fp16")
    assert record["fused_mha"]["found"] == record["fused_mha"]["expected"]
    assert [(one["name"], one["dtype"], one["shape"]) for one in record["outputs"]] == [("logits", "float32", [-1, 4])]
    fixed = vitslim("refit", engine, "--from", one_block)
    assert (fixed.code, "has fixed weights" in fixed.error) == (2, True)
    again = vitslim(*words)
    assert (again.code, "pass --overwrite" in again.error) == (2, True)
    if not torch.cuda.is_available():
        refused = vitslim("verify", one_block, engine)
        assert (refused.code, "needs an NVIDIA GPU" in refused.error) == (3, True)
        data = "fractals:classes=4,train_per_class=1,val_per_class=4,image_size=32"
        measured = vitslim("eval", one_block, "--backend", "rtx", "--data", data)
        assert (measured.code, "needs an NVIDIA GPU" in measured.error) == (3, True)


def test_a_refit_says_what_is_missing_before_it_begins(folder: Path, vitslim: Command, tmp_path: Path) -> None:
    nothing = vitslim("refit", tmp_path / "no.engine", "--from", folder)
    assert "no.engine does not exist; build it with" in nothing.error
    unsaved = vitslim("refit", tmp_path / "no.engine", "--from", tmp_path)
    assert (unsaved.code, "wanted a folder that vitslim wrote" in unsaved.error) == (2, True)
    (tmp_path / "there.engine").touch()
    there = vitslim("refit", tmp_path / "no.engine", "--from", folder, "--out", tmp_path / "there.engine")
    assert (there.code, "pass --overwrite" in there.error) == (2, True)


def test_an_exported_file_is_evaluated_like_its_model(one_block: Path, vitslim: Command) -> None:
    data = "fractals:classes=4,train_per_class=1,val_per_class=4,image_size=32"
    assert vitslim("export", one_block).code == 0
    live = vitslim("eval", one_block, "--data", data, "--json").document
    exported = vitslim("eval", one_block, "--backend", "auto", "--batch-size", "5", "--data", data, "--json").document
    assert (exported["images"], exported["top1"]) == (live["images"], live["top1"])
    assert exported["loss"] == pytest.approx(live["loss"], rel=1e-4)
    refused = vitslim("eval", one_block, "--backend", "onxx", "--data", data)
    assert "unknown backend 'onxx'; did you mean" in refused.error


def test_a_backend_runs_what_was_saved_only(vitslim: Command) -> None:
    outcome = vitslim("eval", "deit_tiny", "--backend", "ort", "--data", "fractals")
    assert "--backend ort runs the exports of a saved folder; given deit_tiny" in outcome.error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_engines_are_not_timed_without_a_gpu(folder: Path, vitslim: Command) -> None:
    outcome = vitslim("bench", folder, "--backend", "rtx", "--rounds", "5")
    assert outcome.code == 1
    assert "backend rtx runs on a GPU; measure with device cuda" in outcome.error
