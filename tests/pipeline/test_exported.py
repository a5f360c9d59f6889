"""What compares and evaluates exported files: the images it takes, the form in which it gives them."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.pipeline.tiny import MODEL
from vitslim.errors import VitslimError
from vitslim.files import write_json
from vitslim.opening import open_model
from vitslim.pipeline import export, run, verify
from vitslim.pipeline.exporting import known_of
from vitslim.pipeline.images import task_images
from vitslim.pipeline.runners import RunnerModule, open_runner
from vitslim.recipe import read_recipe

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

OTHERS = "fractals:classes=4,train_per_class=1,val_per_class=4,image_size=32,seed=7"


SHALLOW = MODEL | {"options": MODEL["options"] | {"depth": 2}}


def saved(folder: Path, **sections: object) -> Path:
    run(read_recipe({"model": SHALLOW, "evaluate": False, "report": False, **sections}), folder)
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("saved") / "student")


def test_a_comparison_uses_the_images_of_the_recipe_then_built_in_ones(student: Path, tmp_path: Path) -> None:
    trained = saved(tmp_path / "trained", data={"source": OTHERS})
    model = open_model(student)
    asked = task_images(student, model, OTHERS, 6)
    known = task_images(trained, model, None, 6)
    built_in = task_images(student, model, None, 6)
    assert asked.images.shape == built_in.images.shape == (6, 3, 32, 32)
    assert torch.equal(known.images, asked.images)
    assert not torch.equal(built_in.images, asked.images)
    assert (asked.origin, known.origin) == ("the images given as data", f"images of the task ({OTHERS})")
    assert built_in.origin.startswith("built-in images (fractals)")
    assert task_images(model, model, None, 6).origin == built_in.origin


def test_images_of_the_recipe_that_are_gone_are_said_and_those_of_the_user_refused(
    student: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    (moved / "recipe.yaml").write_text("data: {source: /nowhere}\n")
    model = open_model(student)
    found = task_images(moved, model, None, 2)
    assert "those of recipe.yaml could not be read: /nowhere does not exist" in found.origin
    with pytest.raises(VitslimError, match="/nowhere does not exist"):
        task_images(student, model, "/nowhere", 2)


def test_a_verification_says_what_it_compared_on(student: Path, tmp_path: Path) -> None:
    export(str(student), tmp_path / "m.onnx")
    found = verify(str(student), tmp_path / "m.onnx", images=4, batches=(2,))
    assert found.passed
    assert found.notes[0].startswith("compared on 4 built-in images (fractals); --data names")


def test_a_file_for_bytes_is_evaluated_as_a_module_on_normalised_images(student: Path, tmp_path: Path) -> None:
    export(str(student), tmp_path / "raw.onnx", input_format="uint8-nhwc")
    model = open_model(student).eval()
    images = task_images(student, model, None, 5).images
    with open_runner(tmp_path / "raw.onnx") as runner, torch.no_grad():
        found = RunnerModule(runner, model)(images)
        expected = model(images)
    # Bytes round what the images say to 1 of 256; the logits are of unit size.
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize("text", ["[1]", "{", '{"student": "good"}', '{"student": {"top1": "high"}}', "null"])
def test_a_file_of_metrics_that_is_not_ours_is_left_out(text: str, student: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(student, tmp_path / "copied"))
    assert known_of(folder / "model.safetensors") == {}
    (folder / "metrics.json").write_text(text)
    assert known_of(folder) == {}
    measured = {"top1": 0.5, "top5": 1.0, "agreement": None, "images": 4}
    write_json(folder / "metrics.json", {"student": {**measured, "kl": 0.1}})
    assert known_of(folder) == {"metrics": measured}
