"""scikit-learn's digits as images of a task."""

import importlib.util
from typing import Any

import pytest
import torch

from tests.data.conftest import Wanted
from vitslim.data import Loader, open_data
from vitslim.data.augment import AugmentConfig
from vitslim.data.digits import NAME, open_digits
from vitslim.errors import ConfigError, MissingDependencyError

load_digits: Any = pytest.importorskip("sklearn.datasets").load_digits


def opened(split: Any, size: int = 8) -> Loader:
    return open_data(NAME, split=split, preprocessing=Wanted(image_size=(size, size)), batch_size=100)


def test_the_two_splits_are_all_digits_once() -> None:
    (train, train_labels), (val, val_labels) = open_digits("train"), open_digits("val")
    assert train.shape == (898, 3, 48, 48)
    assert val.shape == (899, 3, 48, 48)
    digits = load_digits()
    assert train_labels.tolist() == digits.target[1::2].tolist()
    assert val_labels.tolist() == digits.target[::2].tolist()
    # Enlarged six times, a pixel lies in the middle of its square: the mean of that square is near its level.
    for pixels, images in ((train, digits.images[1::2]), (val, digits.images[::2])):
        squares = pixels[:, 0].float().unflatten(1, (8, 6)).unflatten(3, (8, 6)).mean((2, 4)) / 255 * 16
        assert (squares - torch.from_numpy(images)).abs().mean() < 1


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
    assert batch.labels.tolist() == load_digits().target[:200:2].tolist()
    torch.testing.assert_close(batch.images[:, 0], batch.images[:, 2])
    assert (loader.num_images, loader.num_classes) == (899, 10)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    here = importlib.util.find_spec
    monkeypatch.setattr("vitslim.data.digits.find_spec", lambda name: None if name == "sklearn" else here(name))
    with pytest.raises(MissingDependencyError, match="sklearn-digits needs scikit-learn: pip install scikit-learn"):
        opened("val")
