"""Pairs of scikit-learn's digits as images of a task."""

import importlib.util
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.data.conftest import Wanted
from vitslim.data import Loader, digits, open_data
from vitslim.data.augment import AugmentConfig
from vitslim.data.digits import CLASSES, NAME, open_digit_pairs
from vitslim.errors import ConfigError, MissingDependencyError

load_digits: Any = pytest.importorskip("sklearn.datasets").load_digits


def opened(split: Any, size: int = 8) -> Loader:
    return open_data(NAME, split=split, preprocessing=Wanted(image_size=(size, size)), batch_size=100)


def test_the_class_is_the_pair_of_digits_and_no_digit_is_in_both_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "COUNTS", {"train": 200, "val": 100})
    # Each digit's pixels have its place among all digits as their level, so that the canvas tells which two lie on it.
    known = load_digits()
    places = torch.arange(len(known.target)).float().div(len(known.target)).mul(16)
    marked = SimpleNamespace(images=places[:, None, None].expand(-1, 8, 8).numpy(), target=known.target)
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda: marked)
    level = (places * (255 / 16)).round().byte()
    for split, first in (("train", 1), ("val", 0)):
        pixels, labels = open_digit_pairs(split)
        assert pixels.shape == (digits.COUNTS[split], 3, 48, 48)
        for image, label in zip(pixels, labels.tolist(), strict=True):
            levels = [one for one in image.unique().tolist() if one]
            candidates = [set(known.target[first::2][(level[first::2] == one).numpy()].tolist()) for one in levels]
            pair = set(digits.PAIRS[label].tolist())
            assert all(pair & of_level for of_level in candidates)
            assert CLASSES[label] == "+".join(map(str, sorted(digits.PAIRS[label].tolist())))


def test_both_digits_can_be_seen_and_every_call_draws_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "COUNTS", {"train": 60, "val": 60})
    pixels, labels = open_digit_pairs("train")
    again, _ = open_digit_pairs("train")
    assert torch.equal(pixels, again)
    assert not torch.equal(pixels, open_digit_pairs("val")[0])
    assert labels.min() >= 0
    assert labels.max() < len(CLASSES) == 55
    # A digit alone covers less of the canvas than two of them.
    ink = (pixels[:, 0] > 64).float().mean((1, 2))
    assert ink.min() > 0.05


def test_cropping_is_refused_for_what_is_moved() -> None:
    with pytest.raises(ConfigError, match=r"moved, not cropped: give data\.augment\.shift"):
        open_data(
            NAME,
            split="train",
            preprocessing=Wanted(image_size=(48, 48)),
            training=True,
            augment=AugmentConfig(crop_scale=(0.8, 1.0)),
        )


def test_a_model_gets_them_at_its_size_in_colour() -> None:
    loader = opened("val", size=48)
    batch = next(iter(loader))
    assert batch.images.shape == (100, 3, 48, 48)
    assert batch.labels is not None
    assert batch.labels.tolist() == open_digit_pairs("val")[1][:100].tolist()
    torch.testing.assert_close(batch.images[:, 0], batch.images[:, 2])
    assert (loader.num_images, loader.num_classes) == (5000, 55)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    here = importlib.util.find_spec
    monkeypatch.setattr("vitslim.data.digits.find_spec", lambda name: None if name == "sklearn" else here(name))
    with pytest.raises(MissingDependencyError, match="pairs needs scikit-learn: pip install scikit-learn"):
        opened("val")
