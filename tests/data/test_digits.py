"""scikit-learn's digits as images of a task."""

import importlib.util
from typing import Any

import pytest
import torch

from tests.data.conftest import Wanted
from vitslim.data import Loader, open_data
from vitslim.data.digits import NAME, find_digits
from vitslim.errors import MissingDependencyError

load_digits: Any = pytest.importorskip("sklearn.datasets").load_digits


def opened(split: Any, size: int = 8) -> Loader:
    return open_data(NAME, split=split, preprocessing=Wanted(image_size=(size, size)), batch_size=100)


def test_the_two_splits_are_all_digits_once() -> None:
    train, val = find_digits("train"), find_digits("val")
    assert (len(train.reader), len(val.reader)) == (898, 899)
    # Levels of 0..16 become 0..255, which keeps different images different: alternating, they are scikit-learn's list.
    every = [image for pair in zip(val.reader, train.reader, strict=False) for image in pair]
    every.append(val.reader[898])
    digits = load_digits()
    assert [label for _, label in every] == digits.target.tolist()
    expected = torch.from_numpy(digits.images / 16 * 255).byte()
    assert all(bytes(expected[index].numpy()) == image.tobytes() for index, (image, _) in enumerate(every))


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_labels_known_beforehand_are_those_of_the_images(split: Any) -> None:
    images = find_digits(split)
    assert images.labels is not None
    assert images.labels.tolist() == [images.reader[index][1] for index in range(len(images.reader))]
    assert images.class_names == tuple("0123456789")
    assert images.num_classes == 10


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
