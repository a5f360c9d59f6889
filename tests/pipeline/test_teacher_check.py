"""Whether a poor teacher is noticed before anything learns from it, and a good one never."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.pipeline.tiny import MODEL, QUIET
from vitslim import checkpoint
from vitslim.data import DataConfig
from vitslim.errors import VitslimWarning
from vitslim.models import preprocessing, set_preprocessing_
from vitslim.opening import open_model
from vitslim.pipeline import run
from vitslim.pipeline.teacher_check import check_teacher, warn_of_poor_teacher
from vitslim.pipeline.training import train_to_folder
from vitslim.recipe import read_recipe
from vitslim.train import DistillConfig

LEVELS = (40, 100, 160, 220)  # grey of the four classes, of 255


class GreyTeacher(nn.Module):
    """Knows four classes by their grey, as a model that was trained with mean and std 0.5 sees it."""

    def __init__(self, order: tuple[int, ...] = (0, 1, 2, 3), stated: float | None = None) -> None:
        super().__init__()
        self.num_classes = 4
        self.pretrained_cfg = {"input_size": (3, 8, 8)}
        self.centres = nn.Parameter(torch.tensor([LEVELS[place] / 255 for place in order]).sub(0.5).div(0.5))
        if stated is not None:
            set_preprocessing_(self, mean=stated, std=0.5, crop_pct=1.0, interpolation="bilinear")

    def forward(self, images: Tensor) -> Tensor:
        grey = images.mean(dim=(1, 2, 3))
        return -40 * (grey[:, None] - self.centres).square()


@pytest.fixture(scope="module")
def greys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("greys")
    for level in LEVELS:
        (root / "val" / str(level).zfill(3)).mkdir(parents=True)
        for number in range(12):
            Image.new("RGB", (8, 8), (level + number - 6,) * 3).save(
                root / "val" / str(level).zfill(3) / f"{number}.png"
            )
    return root


@pytest.fixture(scope="module")
def unlabelled(greys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("unlabelled")
    (root / "val").mkdir()
    for number, path in enumerate(sorted(greys.rglob("*.png"))):
        (root / "val" / f"{number}.png").write_bytes(path.read_bytes())
    return root


def test_a_wrong_normalisation_is_found_with_the_setting_that_mends_it(greys: Path) -> None:
    teacher = GreyTeacher()
    found = check_teacher(teacher, teacher, greys)
    assert found is not None
    assert found.warning is not None
    assert "48 held-out images (4 classes, chance 25.0%); on 100.0% of them with other preparation" in found.warning
    assert "--set data.mean=0.5 --set data.std=0.5 (DataConfig(mean=0.5, std=0.5))" in found.warning
    assert preprocessing(teacher).mean != (0.5,) * 3
    stated = DataConfig(source=str(greys), mean=(0.5,), std=(0.5,), crop_pct=1.0, interpolation="bilinear")
    mended = check_teacher(teacher, set_preprocessing_(teacher, **stated.stated), stated)
    assert mended is not None
    assert (mended.warning, mended.accuracy, len(mended.tried)) == (None, 1.0, 1)


def test_what_was_stated_wrongly_is_found_too(greys: Path) -> None:
    teacher = GreyTeacher(stated=0.1)
    with pytest.warns(VitslimWarning, match=r"100\.0% of them .*--set data\.mean=0\.5 \("):
        warn_of_poor_teacher(teacher, teacher, greys)


def test_classes_in_another_order_are_the_likely_cause_where_renaming_would_help(greys: Path) -> None:
    teacher = GreyTeacher(order=(3, 0, 1, 2), stated=0.5)
    found = check_teacher(teacher, teacher, greys)
    assert found is not None
    assert found.warning is not None
    assert found.warning.startswith("the teacher is right on 0.0% of 48 held-out images")
    assert "classes in another order than the teacher's outputs (data.class_map) (if each class is" in found.warning


def test_without_labels_only_an_assumed_normalisation_that_matters_is_said(unlabelled: Path) -> None:
    assumed, stated = GreyTeacher(), GreyTeacher(stated=0.5)
    with pytest.warns(VitslimWarning, match=r"nobody stated how .* best class is the same on only .* State those"):
        warn_of_poor_teacher(assumed, assumed, unlabelled)
    found = check_teacher(stated, stated, unlabelled)
    assert found is not None
    assert (found.warning, found.accuracy) == (None, None)


def test_the_builtin_model_is_never_warned_of() -> None:
    teacher = open_model("builtin")
    for labels in ("auto", "ignore"):
        images = "fractals:classes=200,train_per_class=1,val_per_class=1"
        found = check_teacher(teacher, teacher, images, labels=labels)  # pyright: ignore[reportArgumentType]
        assert found is not None
        assert (found.warning, len(found.tried)) == (None, 1)


def test_a_handful_of_images_or_another_input_says_nothing(greys: Path) -> None:
    teacher = GreyTeacher()
    few = "fractals:classes=4,train_per_class=1,val_per_class=4,image_size=8"
    assert check_teacher(teacher, teacher, few) is None
    larger = GreyTeacher()
    larger.pretrained_cfg = {"input_size": (3, 16, 16)}
    assert check_teacher(teacher, larger, greys) is None


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options: dict[str, Any] = {**MODEL["options"], "img_size": 32, "num_classes": 4}
    return checkpoint.save(
        open_model("builtin", pretrained=False, **options), tmp_path_factory.mktemp("teacher") / "untrained"
    )


ENOUGH = "fractals:classes=4,train_per_class=8,val_per_class=12,image_size=32"


def test_a_run_says_once_that_its_teacher_is_poor(untrained: Path, tmp_path: Path) -> None:
    short = {"steps": 1, **QUIET}
    document = {
        "model": MODEL,
        "teacher": str(untrained),
        "convert": [{"method": "skipat"}],
        "data": {"source": ENOUGH, "batch_size": 16},
        "warm_start": short,
        "distill": short,
        "report": False,
    }
    with pytest.warns(VitslimWarning) as said:
        run(read_recipe(document), tmp_path / "out")
    assert sum("a student learns its teacher's mistakes" in str(one.message) for one in said) == 1


def test_a_run_that_imitates_nobody_does_not_ask_for_a_good_teacher(untrained: Path, tmp_path: Path) -> None:
    from_labels = {"steps": 1, "ce_weight": 1.0, "kd_weight": 0.0, **QUIET}
    data = {"source": ENOUGH, "batch_size": 16}
    recipe = read_recipe({"model": {"name": str(untrained)}, "data": data, "distill": from_labels, "report": False})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        run(recipe, tmp_path / "out")
    assert not [one for one in said if "teacher" in str(one.message)]


def test_a_training_says_that_its_teacher_is_poor(untrained: Path, tmp_path: Path) -> None:
    teacher, student = checkpoint.load(untrained), checkpoint.load(untrained)
    settings = DistillConfig(steps=1, ce_weight=0.0, **QUIET)
    with pytest.warns(VitslimWarning, match="the teacher is right on"):
        train_to_folder(student, teacher, ENOUGH, settings, tmp_path / "out", batch_size=16)
