"""eval, report."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.cli.conftest import TINY, Command
from tests.pipeline.tiny import IMAGES
from vitslim import checkpoint
from vitslim.cli.screen import say_skipped
from vitslim.names import BUILTIN

# --- eval ------------------------------------------------------------------------------------------------------------


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


def test_images_that_are_skipped_are_reported(student: Path, damaged_images: Path, vitslim: Command) -> None:
    words = ("eval", student, "--data", damaged_images)
    assert "1 held-out image could not be read and was skipped: class1/1.png" in vitslim(*words).err
    found = vitslim(*words, "--json").document
    assert (found["images"], found["corrupt"], found["examples"]) == (99, 1, ["class1/1.png"])


def test_training_tells_of_skipped_images_too(
    student: Path, damaged_images: Path, tmp_path: Path, vitslim: Command
) -> None:
    short = ("--batch-size", 50, "--set", "distill.tensorboard=false", "--set", "distill.precision=fp32")
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
    printed = vitslim("convert", BUILTIN, "--method", "skipat", "--out", tmp_path / "converted", *TINY, *words).err
    assert "1 training image could not be read and was skipped: class1/1.png" in printed
    assert "1 held-out image could not be read and was skipped: class1/1.png" in printed
    words = ("--data", damaged_images, "--epochs", 1, "--batch-size", 50, "--set", "tensorboard=false")
    found = vitslim("train", student, *words, "--out", tmp_path / "trained", "--json").document
    assert (found["result"]["corrupt"], found["result"]["examples"]) == (1, ["class1/1.png"])
    assert found["metrics"]["student"]["corrupt"] == 1


def test_several_skipped_images_are_reported_with_the_first_names(capsys: pytest.CaptureFixture[str]) -> None:
    say_skipped({"corrupt": 3, "examples": ["a.png", "b.png"]}, "training")
    say_skipped({"corrupt": 0, "examples": []}, "training")
    printed = capsys.readouterr().err
    assert printed == "3 training images could not be read and were skipped, among them a.png, b.png\n"


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


# --- report ----------------------------------------------------------------------------------------------------------


def test_a_report_is_rendered_again(copied: Path, vitslim: Command) -> None:
    outcome = vitslim("report", copied)
    assert outcome.code == 0
    assert outcome.err.startswith(f"wrote {copied}/report.html")
    assert "http" not in (copied / "report.html").read_text().split("<body")[0]


def test_a_report_of_nothing_is_refused(tmp_path: Path, vitslim: Command) -> None:
    assert vitslim("report", tmp_path).code == 2
    assert vitslim("report", tmp_path / "nowhere").error.endswith("nowhere does not exist")
