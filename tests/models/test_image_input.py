"""How a model wants its images: what is known, what is assumed, how it is stated."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from timm.models.vision_transformer import VisionTransformer

from tests.variants import SIZE
from vitslim import checkpoint, convert
from vitslim.errors import ConfigError
from vitslim.models import Preprocessing, preprocessing, set_preprocessing_
from vitslim.models.image_input import STATED_WITH_WEIGHTS, setting
from vitslim.opening import open_model

KNOWN: dict[str, Any] = {
    "image_size": (32, 32),
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "channels": 3,
}


def by_hand(**changes: Any) -> VisionTransformer:
    return VisionTransformer(**{**SIZE, **changes})


def test_preprocessing_follows_the_weights_and_the_present_size() -> None:
    found = preprocessing(timm.create_model("test_vit", img_size=(96, 64)))
    assert (found.image_size, found.mean, found.std) == ((96, 64), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (found.crop_pct, found.interpolation, found.channels, found.assumed) == (0.95, "bicubic", 3, ())


def test_of_a_model_built_by_hand_everything_is_assumed() -> None:
    found = preprocessing(by_hand())
    assert (found.image_size, found.channels, found.mean) == ((32, 32), 3, (0.485, 0.456, 0.406))
    assert found.assumed == STATED_WITH_WEIGHTS


def test_figures_of_rgb_are_assumed_for_other_channels() -> None:
    found = preprocessing(timm.create_model("test_vit", img_size=32, in_chans=1))
    assert (found.mean, found.std, found.assumed) == ((0.5,), (0.5,), ("mean", "std"))


def test_what_was_stated_is_no_longer_assumed_and_one_number_serves_all_channels() -> None:
    model = by_hand()
    assert set_preprocessing_(model, mean=0.5, std=(0.1, 0.2, 0.3)) is model
    found = preprocessing(model)
    assert (found.mean, found.std, found.assumed) == ((0.5,) * 3, (0.1, 0.2, 0.3), ("interpolation", "crop_pct"))
    set_preprocessing_(model, crop_pct=1.0, interpolation="bilinear")
    assert preprocessing(model).assumed == ()
    assert preprocessing(model).mean == (0.5,) * 3


def test_a_file_of_weights_says_nothing_of_images_however_it_is_named(tmp_path: Path) -> None:
    torch.save(by_hand().state_dict(), tmp_path / "own.pth")
    size = {name: value for name, value in SIZE.items() if name != "num_classes"}
    opened = open_model("vit_tiny_patch16_224", weights=tmp_path / "own.pth", **size)
    assert preprocessing(opened).assumed == STATED_WITH_WEIGHTS
    assert preprocessing(open_model("builtin")).assumed == ()


@pytest.mark.parametrize("converted", [False, True])
def test_what_is_stated_and_what_is_assumed_survive_saving(tmp_path: Path, converted: bool) -> None:
    model = set_preprocessing_(by_hand(), mean=0.25, crop_pct=1.0)
    model = convert(model, "skipat") if converted else model
    checkpoint.save(model, tmp_path / "out")
    found = preprocessing(checkpoint.load(tmp_path / "out"))
    assert found == preprocessing(model) == checkpoint.load_config(tmp_path / "out").input
    assert (found.mean, found.assumed) == ((0.25,) * 3, ("std", "interpolation"))


BAD: dict[str, dict[str, Any]] = {
    "two means for three channels": {"mean": (0.5, 0.5)},
    "a deviation of 0": {"std": (0.0, 0.5, 0.5)},
    "a negative crop": {"crop_pct": -1.0},
    "a crop beyond the image": {"crop_pct": 1.5},
    "a mean of bytes": {"mean": (127.5,) * 3},
    "a mean that is no number": {"mean": (float("nan"),) * 3},
    "an unknown interpolation": {"interpolation": "cubic"},
}


@pytest.mark.parametrize("case", BAD)
def test_what_makes_no_sense_is_refused_and_the_model_stays_as_it_was(case: str) -> None:
    with pytest.raises(ValidationError):
        Preprocessing(**{**KNOWN, **BAD[case]})
    model = by_hand()
    before = preprocessing(model)
    with pytest.raises(ConfigError, match="images cannot be prepared like this"):
        set_preprocessing_(model, **BAD[case])
    assert preprocessing(model) == before


@pytest.mark.parametrize("change", [{"image_size": (0, 32)}, {"image_size": (10**6, 32)}, {"assumed": ("mode",)}])
def test_a_saved_input_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Preprocessing(**{**KNOWN, **change})


def test_a_value_is_shown_as_it_is_typed() -> None:
    shown = [setting(value) for value in ((0.5, 0.5), (0.485, 0.456, 0.406), 0.875, "bicubic")]
    assert shown == ["0.5", "[0.485,0.456,0.406]", "0.875", "bicubic"]
