"""One function opens every kind of source, and the public functions take whatever it takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vitslim
from tests.variants import SIZE, dense, images_for
from vitslim import checkpoint, opening
from vitslim.errors import ConfigError
from vitslim.models import preprocessing
from vitslim.pipeline.inputs import open_source, open_teacher
from vitslim.recipe import read_recipe

SHAPE: dict[str, Any] = {name: SIZE[name] for name in ("img_size", "depth", "embed_dim", "num_heads", "num_classes")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint.save(dense("vit_plain"), tmp_path / "saved")


SOURCES: dict[str, Callable[[Path], Any]] = {
    "module": lambda folder: dense("vit_plain"),
    "folder": lambda folder: folder,
    "its name": str,
    "weights file with a description": lambda folder: folder / checkpoint.WEIGHTS_FILE,
    "saved on the hub": lambda folder: "hf-hub:someone/saved",
}


@pytest.fixture
def hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that has one saved model."""
    monkeypatch.setattr(opening, "hub_description", lambda name: checkpoint.load_config(folder).model_dump())
    monkeypatch.setattr(checkpoint, "_downloaded", lambda name: folder)


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source_is_the_same_model_to_every_function(folder: Path, hub: None, kind: str) -> None:
    source, images = SOURCES[kind](folder), images_for(dense("vit_plain"))
    assert torch.equal(vitslim.open_model(source)(images), dense("vit_plain")(images))
    student = vitslim.convert(source, "skipat", layers=(2,))
    assert torch.equal(student(images), vitslim.convert(dense("vit_plain"), "skipat", layers=(2,))(images))
    with pytest.raises(ConfigError, match="knows its own img_size, depth; leave them out"):
        vitslim.open_model(source, img_size=64, depth=3)


def test_a_name_takes_options_and_what_is_stated_of_its_images() -> None:
    model = vitslim.open_model("builtin", pretrained=False, **SHAPE, stated={"mean": 0.25, "crop_pct": 1.0})
    assert (model.num_classes, len(model.blocks)) == (10, 4)
    assert (preprocessing(model).mean, preprocessing(model).crop_pct) == ((0.25,) * 3, 1.0)


def test_a_saved_model_untrained_has_its_shape_and_other_weights(folder: Path) -> None:
    fresh, images = vitslim.open_model(folder, pretrained=False), images_for(dense("vit_plain"))
    assert not fresh.training
    assert fresh(images).shape == (2, 10)
    assert not torch.equal(fresh(images), dense("vit_plain")(images))


def test_a_shape_is_opened_without_weights_unless_they_are_here(folder: Path) -> None:
    assert next(opening.open_shape("deit_small", pretrained=True).parameters()).is_meta
    assert torch.equal(opening.open_shape(folder).norm.weight, dense("vit_plain").norm.weight)


@pytest.mark.parametrize("source", [Path("nowhere"), "nowhere/at/all"])
def test_a_path_to_nothing_is_not_taken_for_a_name(source: Any) -> None:
    with pytest.raises(ConfigError, match="is neither a folder nor a file that vitslim wrote"):
        vitslim.open_model(source)


def test_a_wrong_method_is_refused_before_its_model_is_opened() -> None:
    with pytest.raises(ConfigError, match="unknown method 'skipatt'; did you mean 'skipat'"):
        vitslim.convert("no_such_model", "skipatt")


def test_a_recipe_opens_what_is_here_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    load = checkpoint.load

    def counted(path: Path) -> nn.Module:
        opened.append(path)
        return load(path)

    monkeypatch.setattr(checkpoint, "load", counted)
    recipe = read_recipe({"model": {"name": str(folder)}, "teacher": str(folder)})
    source = open_source(recipe, shape_only=True)
    teacher = open_teacher(recipe, source, shape_only=True)
    assert open_source(recipe, opened=source) is source
    assert open_teacher(recipe, source, opened=teacher) is teacher
    assert len(opened) == 2
    named = read_recipe({"model": {"name": "builtin", "pretrained": False, "img_size": 32}})
    shape = open_source(named, shape_only=True)
    assert next(shape.parameters()).is_meta
    assert not next(open_source(named, opened=shape).parameters()).is_meta


def test_the_dense_baseline_of_a_student_is_its_base_at_its_size() -> None:
    student = vitslim.convert(dense("vit_oblong"), "skipat", layers=(2,))
    baseline = opening.dense_baseline(student)
    assert {name: value.shape for name, value in baseline.state_dict().items()} == {
        name: value.shape for name, value in dense("vit_oblong").state_dict().items()
    }
