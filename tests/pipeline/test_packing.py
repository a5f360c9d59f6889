"""A recipe with all that it needs is run where nothing else is, and ends as it does here."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.tiny import IMAGES, MODEL, QUIET
from vitslim import checkpoint, convert, open_model, plan_of, save
from vitslim.files import write_json
from vitslim.pipeline import run
from vitslim.pipeline.packing import pack, read_files, write_files
from vitslim.plans import plan_json
from vitslim.recipe import Recipe, read_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A recipe that names a saved model, with a log beside it, for its model and its teacher, and a plan."""
    model = open_model("builtin", pretrained=False, **{key: MODEL[key] for key in ("img_size", "num_classes")}, depth=2)
    save(model, tmp_path / "model")
    (tmp_path / "model" / "log.txt").write_text("of another time")
    write_json(tmp_path / "plan.json", plan_json(plan_of(convert(model, "mlp", keep=0.5))))
    saved = str(tmp_path / "model")
    return read_recipe(
        {
            "model": {"name": saved},
            "teacher": saved,
            "plan": str(tmp_path / "plan.json"),
            "data": {"source": IMAGES, "batch_size": 16},
            "distill": {"steps": 1, **QUIET},
            "report": False,
            "evaluate": False,
        }
    )


def sent(recipe: Recipe, folder: Path) -> Recipe:
    """Pack a recipe and write its files into a folder, as on another machine."""
    packed = pack(recipe)
    write_files(folder, {name: path.read_bytes() for name, path in packed.files.items()})
    return packed.recipe


def test_a_recipe_runs_from_what_was_packed_alone(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = tmp_path / "there"
    unpacked = sent(recipe, there)
    run(recipe, tmp_path / "here")
    (tmp_path / "model").rename(tmp_path / "gone")
    (tmp_path / "plan.json").unlink()
    monkeypatch.chdir(there)
    run(unpacked, "out")
    here, other = (checkpoint.load(path).state_dict() for path in (tmp_path / "here", there / "out"))
    torch.testing.assert_close(other, here, rtol=0, atol=0)
    assert not list(there.rglob("log.txt"))


def test_what_two_paths_share_is_packed_once_and_other_content_is_another_recipe(
    recipe: Recipe, tmp_path: Path
) -> None:
    first = pack(recipe)
    assert sorted(path.name for path in first.files.values()) == ["config.json", "model.safetensors", "plan.json"]
    assert first.recipe == pack(recipe).recipe
    (tmp_path / "plan.json").write_text("{}")
    assert pack(recipe).recipe != first.recipe


def test_a_file_of_weights_and_a_saved_file_alone_travel_too(recipe: Recipe, tmp_path: Path) -> None:
    file = tmp_path / "model" / checkpoint.WEIGHTS_FILE
    model = recipe.model.model_copy(update={"name": "vit_tiny_patch16_224", "weights": str(file)})
    packed = pack(recipe.model_copy(update={"model": model, "teacher": str(file)})).recipe
    assert packed.model.name == "vit_tiny_patch16_224"
    assert packed.model.weights == packed.teacher
    assert str(packed.teacher).endswith(f"/{checkpoint.WEIGHTS_FILE}")


@pytest.mark.parametrize("kind", ["", "wds/"])
def test_images_are_named_by_their_whole_path(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    assert recipe.data is not None

    def source(name: str) -> Any:
        data = pack(recipe.model_copy(update={"data": recipe.data.model_copy(update={"source": name})})).recipe.data
        assert data is not None
        return data.source

    assert source(f"{kind}images") == f"{kind}{tmp_path}/images"
    assert source("hfds/owner/name") == "hfds/owner/name"
    assert source(IMAGES) == IMAGES


def test_what_is_not_there_stays_for_the_run_to_refuse(recipe: Recipe) -> None:
    absent = recipe.model_copy(update={"plan": "nowhere/plan.json", "teacher": "deit_small"})
    assert (pack(absent).recipe.plan, pack(absent).recipe.teacher) == ("nowhere/plan.json", "deit_small")


def test_a_folder_comes_back_with_its_folders_and_without_what_was_cut_off(tmp_path: Path) -> None:
    files = {"a.json": b"{}", "train/state.bin": bytes(range(256)), "empty": b""}
    write_files(tmp_path / "one", {**files, "train/.state.bin.vitslim-a1b2c3d4.part/state.bin": b"half"})
    assert read_files(tmp_path / "one") == files
