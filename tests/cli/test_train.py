"""train, pretrain."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.cli.conftest import TRAINING, Command
from tests.kills import content_of
from tests.pipeline.tiny import IMAGES, QUIET
from vitslim import checkpoint
from vitslim.files import read_json, write_text
from vitslim.names import BUILTIN
from vitslim.train.loop import _Run

# --- train -----------------------------------------------------------------------------------------------------------


def test_a_student_is_trained_to_a_teacher(student: Path, dense: Path, tmp_path: Path, vitslim: Command) -> None:
    words = ("--teacher", dense, "--data", IMAGES, "--out", tmp_path / "out", *TRAINING, "--json")
    outcome = vitslim("train", student, *words)
    assert outcome.code == 0, outcome.err
    assert outcome.document["result"]["settings"]["kd_weight"] == 1.0
    assert set(outcome.document["metrics"]) == {"student", "teacher"}
    assert [entry.method for entry in checkpoint.load_config(tmp_path / "out").conversions] == ["skipat"]
    assert "| student |" in (tmp_path / "out" / "README.md").read_text()


def test_a_dense_model_is_trained_on_labels(dense: Path, tmp_path: Path, vitslim: Command) -> None:
    outcome = vitslim("train", dense, "--data", IMAGES, "--out", tmp_path / "out", *TRAINING)
    assert outcome.code == 0, outcome.err
    assert "student" in outcome.out
    assert "(off: --set augment.hflip=0 --set augment.shift=0" in outcome.err
    assert "budget    training 2 steps of 16 images" in outcome.err
    assert read_json(tmp_path / "out" / "train" / "result.json")["settings"]["ce_weight"] == 1.0


def test_a_training_that_was_cut_off_is_resumed(
    dense: Path, tmp_path: Path, vitslim: Command, monkeypatch: Any
) -> None:
    words = ("train", dense, "--data", IMAGES, *TRAINING, "--set", "steps=3", "--set", "checkpoint_every=1")
    assert vitslim(*words, "--out", tmp_path / "whole").code == 0

    make_step = _Run._step

    def fall(self: Any, batches: Any, step: int) -> Any:
        if step == 2:
            raise KeyboardInterrupt
        return make_step(self, batches, step)

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_step", fall)
        assert vitslim(*words, "--out", tmp_path / "out").code == 130
    assert "is not empty; pass --overwrite" in vitslim(*words, "--out", tmp_path / "out").error
    resumed = vitslim(*words, "--out", tmp_path / "out", "--resume")
    assert resumed.code == 0
    assert f"the training in {tmp_path / 'out'} goes on after step 2" in resumed.err
    first, second = (checkpoint.load(tmp_path / name).state_dict() for name in ("whole", "out"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_what_is_resumed_is_said(dense: Path, tmp_path: Path, vitslim: Command) -> None:
    out = tmp_path / "out"
    words = ("train", dense, "--data", IMAGES, *TRAINING, "--out", out, "--resume")
    assert f"{out} holds no training to go on with; it begins at the first step" in vitslim(*words).err
    found = read_json(out / "metrics.json")
    finished = vitslim(*words)
    assert finished.code == 0
    assert f"the training in {out} has made all its steps and is measured and saved again after step 2" in finished.err
    assert read_json(out / "metrics.json") == found
    (out / "train" / "state.safetensors").unlink()
    assert "ended before a state was written; it begins again" in vitslim(*words).err


def test_only_the_same_training_is_resumed(dense: Path, student: Path, tmp_path: Path, vitslim: Command) -> None:
    words = ("--data", IMAGES, *TRAINING, "--out", tmp_path / "out")
    assert vitslim("train", dense, *words).code == 0
    other = checkpoint.load(dense)
    other.get_parameter("head.bias").data += 1
    checkpoint.save(other, tmp_path / "other")
    for model, teacher, message in (
        (tmp_path / "other", None, "student was 'VisionTransformer with weights "),
        (student, None, "student was 'VisionTransformer with weights "),
        (dense, student, "teacher was None, now 'VisionTransformer with weights "),
    ):
        learning = () if teacher is None else ("--teacher", teacher, "--set", "ce_weight=1", "--set", "kd_weight=0")
        outcome = vitslim("train", model, *words, *learning, "--resume")
        assert outcome.code == 2
        assert message in outcome.error
    refused = vitslim("train", dense, "--data", IMAGES, *TRAINING, "--out", dense, "--resume")
    assert f"--resume: {dense} holds files but no training to go on with" in refused.error


def test_a_training_over_another_model_changes_nothing_before_its_end(
    dense: Path, tmp_path: Path, vitslim: Command, monkeypatch: Any
) -> None:
    out = Path(shutil.copytree(dense, tmp_path / "out"))
    write_text(out / "export" / "model.onnx", "of the old model")
    write_text(out / "notes.txt", "mine")
    before = content_of(out)
    words = ("train", dense, "--data", IMAGES, *TRAINING, "--set", "checkpoint_every=1", "--out", out)

    make_step = _Run._step

    def fall(self: Any, batches: Any, step: int) -> Any:
        if step == 1:
            raise KeyboardInterrupt
        return make_step(self, batches, step)

    with monkeypatch.context() as patch:
        patch.setattr(_Run, "_step", fall)
        assert vitslim(*words, "--overwrite").code == 130
    assert content_of(out) == before
    outcome = vitslim(*words, "--resume", "--json")
    assert (outcome.code, outcome.document["out"]) == (0, str(out))
    assert not (out / "export").exists()
    assert (out / "notes.txt").read_text() == "mine"
    assert content_of(out)["model.safetensors"] != before["model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_saved_student_starts_from_scratch(student: Path, tmp_path: Path, vitslim: Command) -> None:
    words = ("--from-scratch", "--data", IMAGES, "--out", tmp_path / "out", *TRAINING, "--set", "lr=1e-9", "--seed", 7)
    outcome = vitslim("train", student, *words)
    assert outcome.code == 0, outcome.err
    old, new = (checkpoint.load(folder).patch_embed.proj.weight for folder in (student, tmp_path / "out"))
    assert not torch.allclose(old, new, atol=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "lrr=1"], "--set: unknown key 'lrr'; did you mean 'lr'?"),
        (["--set", "augment.hflp=1"], "unknown key 'augment.hflp'; did you mean 'hflip'?"),
        (["--set", "lr=-1"], "--set: lr=-1: Input should be greater than 0"),
        (["--set", "optimizer=adamww"], "adamww"),
        (["--set", "kd_weight=1"], "kd_weight=1 needs a teacher"),
        (["--set", "ce_weight=0"], "every part of the loss has weight 0"),
        (["--set", "steps=true"], "--set: steps=True: true and false are no numbers"),
        (["--set", "lr=.inf"], "--set: lr=inf: Input should be a finite number"),
        (["--set", "temperature=1e-30"], "--set: temperature=1e-30: Input should be greater than or equal to 0.05"),
        (["--teacher", "deit_smal"], "unknown model 'deit_smal'; did you mean"),
        (["--data", "fractals:classes=5,train_per_class=4,val_per_class=4,image_size=32"], "given 5 classes"),
        (["--num-classes", "7"], "is a saved model, which knows its own num_classes"),
    ],
)
def test_a_training_that_cannot_work_is_one_line(
    words: list[str], message: str, dense: Path, tmp_path: Path, vitslim: Command
) -> None:
    outcome = vitslim("train", dense, "--data", IMAGES, "--out", tmp_path / "out", *TRAINING, *words)
    assert outcome.code == 2
    assert message in outcome.error
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_loss_that_is_not_finite_fails_the_check(dense: Path, tmp_path: Path, vitslim: Command) -> None:
    words = ("--set", "lr=1e30", "--set", "clip_grad=null", "--set", "warmup=0", "--set", "steps=4")
    outcome = vitslim("train", dense, "--data", IMAGES, "--out", tmp_path / "out", *TRAINING, *words)
    assert outcome.code == 1
    assert "lower lr, lengthen warmup" in outcome.error


# --- pretrain --------------------------------------------------------------------------------------------------------


def test_a_small_model_is_pretrained_in_phases(tmp_path: Path, vitslim: Command) -> None:
    phase = {"image_size": 32, "batch_size": 16, "train": {"steps": 1, "ce_weight": 1.0, "kd_weight": 0.0, **QUIET}}
    path = tmp_path / "phases.yaml"
    path.write_text(yaml.safe_dump({"model": BUILTIN, "data": {"source": IMAGES}, "phases": [phase]}))
    outcome = vitslim("pretrain", path, "--out", tmp_path / "out", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.document["held_out"]["images"] == 16
    assert (tmp_path / "out" / outcome.document["weights"]).is_file()


def test_a_bad_file_of_phases_is_one_line(tmp_path: Path, vitslim: Command) -> None:
    (tmp_path / "phases.yaml").write_text("phasis: []")
    outcome = vitslim("pretrain", tmp_path / "phases.yaml", "--out", tmp_path / "out")
    assert outcome.code == 2
    assert "unknown key 'phasis'; did you mean 'phases'?" in outcome.error
