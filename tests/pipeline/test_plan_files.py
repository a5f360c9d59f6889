"""Recipes that name a plan file; what a plan changes beside the blocks."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.tiny import MODEL, QUIET, RECIPE
from vitslim import checkpoint
from vitslim.errors import ConfigError
from vitslim.files import read_json
from vitslim.opening import open_model
from vitslim.pipeline import run
from vitslim.pipeline.checks import check
from vitslim.plans import dense_plan, plan_json, read_plan
from vitslim.recipe import read_recipe
from vitslim.trunk import Trunk, plan_of

SKIPPED: dict[str, Any] = dict.fromkeys(("analyze", "distill", "warm_start"))
ALONE = SKIPPED | {"finetune_dense": False, "evaluate": False}


@pytest.fixture(scope="module")
def plan() -> dict[str, Any]:
    """The plan of the tiny model with block 2 reusing, as somebody would edit it; shared, never changed."""
    with torch.device("meta"):
        options = {name: value for name, value in MODEL.items() if name not in ("name", "options")}
        document = plan_json(plan_of(open_model("builtin", **options, **MODEL["options"])))
    document["steps"][2]["attention"] = {"kind": "reuse", "expansion": 0.5, "residual": True}
    return document


def written(document: Any, folder: Path) -> str:
    path = folder / "edited.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_a_run_makes_what_a_plan_file_says(plan: dict[str, Any], tmp_path: Path) -> None:
    recipe = read_recipe({**RECIPE, **ALONE, "convert": [], "plan": written(plan, tmp_path)})
    result = run(recipe, tmp_path / "out")
    made = read_json(tmp_path / "out" / "plan.json")
    assert made == plan_json(read_plan(plan)) == plan_json(plan_of(result.student))
    # The file that a run writes is one that a recipe can name.
    again = read_recipe({**RECIPE, **ALONE, "convert": [], "plan": str(tmp_path / "out" / "plan.json")})
    run(again, tmp_path / "again")
    assert read_json(tmp_path / "again" / "plan.json") == made
    assert checkpoint.load_config(tmp_path / "again").conversions == []


def test_an_edited_plan_under_the_same_name_is_made_anew(plan: dict[str, Any], tmp_path: Path) -> None:
    document = copy.deepcopy(plan)
    recipe = read_recipe({**RECIPE, **ALONE, "convert": [], "plan": written(document, tmp_path)})
    run(recipe, tmp_path / "out")
    document["steps"][1]["mlp"] = {"kind": "none"}
    written(document, tmp_path)
    run(recipe, tmp_path / "out")
    assert read_json(tmp_path / "out" / "plan.json")["steps"][1]["mlp"] == {"kind": "none"}


def test_methods_go_on_from_a_plan_file(plan: dict[str, Any], tmp_path: Path) -> None:
    convert = [{"method": "evo_vit", "stages": [3]}]
    found = check(read_recipe({**RECIPE, **ALONE, "convert": convert, "plan": written(plan, tmp_path)}))
    assert found.plan is not None
    assert [one.attention.kind for one in found.plan.steps] == ["dense", "dense", "reuse", "dense"]
    assert [one.tokens.selects for one in found.plan.steps] == [False, False, False, True]


def test_every_error_of_an_edited_plan_is_named_and_nothing_is_written(plan: dict[str, Any], tmp_path: Path) -> None:
    document = copy.deepcopy(plan)
    document["steps"][0]["attention"] = {"kind": "reuse"}
    document["steps"][1]["mlp"] = {"kind": "narow"}
    document["steps"][2]["attention"]["expansion"] = -1
    document["image_size"] = [30, 32]
    recipe = read_recipe({**RECIPE, "plan": written(document, tmp_path)})
    for act in (check, lambda recipe: run(recipe, tmp_path / "out")):
        with pytest.raises(ConfigError) as caught:
            act(recipe)
        for error in (
            "steps.1.mlp: ",
            "'narow'",
            "steps.2.attention: ",
            "expansion",
            "the height has to be a multiple",
        ):
            assert error in str(caught.value)
    assert not (tmp_path / "out").exists()
    document["image_size"] = [32, 32]
    with pytest.raises(ConfigError) as caught:
        check(read_recipe({**RECIPE, "plan": written(document, tmp_path)}))
    for error in ("'narow'", "expansion", "step 0 (reuse (expansion 2)) has no earlier attention output"):
        assert error in str(caught.value)


def test_a_plan_of_another_model_is_refused_before_anything_is_written(plan: dict[str, Any], tmp_path: Path) -> None:
    model = {**MODEL, "options": {**MODEL["options"], "depth": 3}}
    recipe = read_recipe({**RECIPE, "model": model, "convert": [], "plan": written(plan, tmp_path)})
    with pytest.raises(ConfigError, match=r"for another model \(4 blocks, this one has 3\)"):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_forecast_builds_one_model_however_many_plans_it_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    init = Trunk.__init__

    def counted(self: Trunk, *args: Any, **kwargs: Any) -> None:
        built.append(1)
        init(self, *args, **kwargs)

    monkeypatch.setattr(Trunk, "__init__", counted)
    # The paper's blocks 1-2 are refused beside a pruning by the attention of 1 and 2: every single one is tried.
    pruned = {"method": "sparsifiner", "token_keep_rate": 0.7, "prune_layers": [1]}
    found = check(read_recipe({**RECIPE, "convert": [{"method": "skipat"}, pruned]}))
    assert found.choices[0].used == [2]
    assert sum(built) == 1


def test_a_student_of_smaller_images_is_trained_and_measured_beside_its_dense_teacher(tmp_path: Path) -> None:
    changes = {**ALONE, "evaluate": True, "distill": {"steps": 2, "token_weight": 1.0, **QUIET}}
    result = run(read_recipe({**RECIPE, **changes, "convert": [{"method": "resolution"}]}), tmp_path)
    assert plan_of(result.student) == dense_plan(plan_of(result.teacher).model, (24, 24))
    assert checkpoint.load_config(tmp_path).input.image_size == (24, 24)
    assert {name: figures["images"] for name, figures in result.metrics.items()} == {"teacher": 16, "student": 16}
    trained = read_json(tmp_path / "train" / "result.json")
    assert (trained["steps"], trained["losses"]["token"] > 0) == (2, True)


def test_a_plan_for_images_of_another_size_is_refused(plan: dict[str, Any], tmp_path: Path) -> None:
    larger = {**RECIPE, "model": {**RECIPE["model"], "img_size": 48}}
    recipe = read_recipe({**larger, **ALONE, "convert": [], "plan": written(plan, tmp_path)})
    for act in (check, lambda recipe: run(recipe, tmp_path / "out")):
        with pytest.raises(ConfigError, match="made for images of 32 × 32 px, this model takes 48 × 48 px"):
            act(recipe)
    assert not (tmp_path / "out").exists()
