"""What is refused before a run begins, and what is said of it."""

import copy
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.tiny import IMAGES, MODEL, RECIPE
from vitslim.errors import VitslimError
from vitslim.pipeline import run
from vitslim.pipeline.checks import check
from vitslim.recipe import read_recipe


def merged(changes: dict[str, Any]) -> dict[str, Any]:
    document = copy.deepcopy(RECIPE)
    for name, value in changes.items():
        old = document.get(name)
        document[name] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    return document


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "optimizer": ({"distill": {"optimizer": "adamww"}}, "unknown optimizer 'adamww'; did you mean 'adamw'"),
    "warm start's optimizer": ({"warm_start": {"optimizer": "adamww"}}, "unknown optimizer 'adamww'"),
    "schedule": ({"distill": {"schedule": "cosinus"}}, "unknown schedule 'cosinus'; did you mean 'cosine'"),
    "warm start's schedule": ({"warm_start": {"schedule": "cosinus"}}, "unknown schedule 'cosinus'"),
    "no loss": ({"distill": {"kd_weight": 0.0}}, "every part of the loss has weight 0"),
    "odd batches": ({"distill": {"mixup": 0.5}, "data": {"batch_size": 15}}, "batch_size=15 must be even"),
    "teacher of other images": ({"teacher": "deit_tiny"}, "does not take images of 3x32x32"),
    "opset": ({"export": {"opset": 99}}, "opset 99: wanted 18 to"),
    "free size": (
        {"export": {"dynamic_image_size": True}, "convert": [{"method": "evo_vit"}]},
        "how many patches take part has to be a constant",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_a_dry_run_and_a_run_refuse_the_same_before_any_work(case: str, tmp_path: Path) -> None:
    changes, message = ERRORS[case]
    document = merged({"finetune_dense": False, **changes})
    for act in (check, lambda recipe: run(recipe, tmp_path / "out")):
        with pytest.raises(VitslimError, match=message):
            act(read_recipe(document))
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    run(read_recipe({"model": {**MODEL, "num_classes": 5}, "report": False}), tmp_path / "teacher")
    with pytest.raises(VitslimError, match="the student has 4 outputs, the teacher 5"):
        check(read_recipe(merged({"teacher": str(tmp_path / "teacher")})))


@pytest.mark.parametrize(
    "entry",
    [
        {"method": "skipat", "expansion": 0.5},
        {"method": "evo_vit", "placeholders": "slow_fast"},
        {"method": "sparsifiner", "granularity": "tile", "tile": 4, "token_keep_rate": 0.5},
        {"method": "sret", "recursions": 2, "slices": [2]},
    ],
    ids=lambda entry: entry["method"],
)
def test_what_can_be_trained_is_not_refused_for_having_no_weights_yet(entry: dict[str, Any]) -> None:
    losses = {"ce_weight": 0.5, "token_weight": 0.5, "step_output_weight": 0.5}
    assert check(read_recipe(merged({"convert": [entry], "distill": losses, "export": {}}))).plan


def test_the_outline_says_what_will_be_done() -> None:
    outline = check(read_recipe(RECIPE)).outline
    assert (outline.model, outline.methods, outline.teacher) == ("builtin", ["skipat"], None)
    images = outline.images
    assert images is not None
    assert (images.source, images.train, images.held_out, images.classes) == (IMAGES, 32, 16, 4)
    assert images.preprocessing.image_size == (32, 32)
    assert images.augment == {"hflip": 0.5, "shift": 0.06}
    assert [(one.stage, one.steps, one.batch_size) for one in outline.budget] == [
        ("warm start", 2, 16),
        ("distillation", 3, 16),
        ("distillation of the dense model", 3, 16),
    ]


def test_the_outline_announces_no_training_that_is_not_made() -> None:
    # Neither has something to warm up, and a length that nobody gave is one pass.
    for entry in ({"method": "evo_vit"}, {"method": "sret", "merged": True, "lrc": True}):
        document = merged({"convert": [entry], "distill": {"steps": None}, "finetune_dense": False})
        (only,) = check(read_recipe(document)).outline.budget
        assert (only.stage, only.epochs, only.steps) == ("distillation", 1.0, None)
    assert check(read_recipe({"model": MODEL})).outline.images is None
    measured = check(read_recipe({"model": MODEL, "data": RECIPE["data"]})).outline.images
    assert measured is not None
    assert (measured.train, measured.augment) == (None, {})
