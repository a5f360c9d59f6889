"""The fractal images are a pure function of config, split and index, and their cache is never trusted blindly."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from PIL import Image
from torch import Tensor

from vitslim.data import fractal, fractal_set
from vitslim.data.fractal import FractalConfig, labels_of, render
from vitslim.data.fractal_set import FractalDataset, open_fractals
from vitslim.errors import ConfigError, DataError

SMALL = FractalConfig(classes=5, image_size=32, train_per_class=8, val_per_class=4)


def images_of(config: FractalConfig, split: fractal.Split = "train") -> Tensor:
    return render(config, split, torch.arange(config.count(split)))


def test_images_are_bytes_over_most_of_their_range() -> None:
    images = images_of(SMALL)
    assert images.shape == (40, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert images.min() < 40
    assert images.max() > 215
    assert images.float().flatten(1).std(dim=1).min() > 10  # no image is a plain colour


def test_same_config_draws_the_same_images() -> None:
    first = images_of(SMALL)
    fractal._class_systems.cache_clear()
    assert torch.equal(first, images_of(SMALL))


@pytest.mark.parametrize("indices", [[5], [9, 5, 5, 0], list(range(3, 17))])
def test_an_image_does_not_depend_on_its_batch(indices: list[int]) -> None:
    wanted = images_of(SMALL)[indices]
    assert torch.equal(render(SMALL, "train", torch.tensor(indices)), wanted)


def test_an_image_does_not_depend_on_where_a_chunk_is_cut() -> None:
    config = dataclasses.replace(SMALL, train_per_class=80)
    images = images_of(config)  # 400 images, more than one chunk at this size
    assert torch.equal(render(config, "train", torch.arange(300, 400)), images[300:])


def test_no_indices_give_no_images() -> None:
    assert render(SMALL, "val", torch.arange(0)).shape == (0, 3, 32, 32)


def test_more_classes_keep_the_first_ones() -> None:
    more = dataclasses.replace(SMALL, classes=9)
    images, labels = images_of(more), labels_of(more, torch.arange(more.count("train")))
    assert torch.equal(images[labels < 5], images_of(SMALL))
    for few, many in zip(fractal._class_systems(0, 5), fractal._class_systems(0, 9), strict=True):
        assert torch.equal(few, many[:5])


def test_more_images_per_class_keep_the_first_ones() -> None:
    more = dataclasses.replace(SMALL, train_per_class=11)
    assert torch.equal(images_of(more)[:40], images_of(SMALL))


def test_splits_and_seeds_and_repetitions_differ() -> None:
    train, val = images_of(SMALL), images_of(SMALL, "val")
    other = images_of(dataclasses.replace(SMALL, seed=1))
    assert (train[:20] != val).flatten(1).any(dim=1).all()
    assert (train != other).flatten(1).any(dim=1).all()
    assert len(torch.unique(torch.cat([train, val]).flatten(1), dim=0)) == 60


def test_every_split_is_balanced() -> None:
    counts = labels_of(SMALL, torch.arange(SMALL.count("val"))).bincount()
    assert counts.tolist() == [4] * 5


def test_shapes_tell_the_classes_apart() -> None:
    # Without variation of pose each class has a mean silhouette; colours and negatives must not matter for this.
    config = dataclasses.replace(SMALL, classes=10, train_per_class=20, jitter=0.05, noise=0.0, rotation=0.0, shift=0.0)

    def silhouettes(split: fractal.Split) -> tuple[Tensor, Tensor]:
        grey = images_of(config, split).float().mean(dim=1)
        edges = (grey - torch.nn.functional.avg_pool2d(grey, 5, 1, 2)).abs().flatten(1)
        return edges / edges.norm(dim=1, keepdim=True), labels_of(config, torch.arange(config.count(split)))

    known, known_labels = silhouettes("train")
    means = torch.stack([known[known_labels == label].mean(dim=0) for label in range(10)])
    asked, asked_labels = silhouettes("val")
    hits = (torch.cdist(asked, means).argmin(dim=1) == asked_labels).float().mean()
    assert hits > 0.5  # chance is 0.1


def test_every_class_contracts_and_fills_its_square_within_the_limits() -> None:
    maps, tables = fractal._class_systems(3, 20)
    assert torch.linalg.matrix_norm(maps[..., :4].unflatten(-1, (2, 2)), ord=2).max() < 0.93
    number = (maps.abs().sum(dim=2) > 0).sum(dim=1)
    assert (tables.amax(dim=1) < number).all()  # only maps that exist are ever chosen
    fill = fractal._fill_rates(maps, tables, torch.arange(20))  # other walks than the accepted ones: some slack
    assert fill.min() > fractal.FILL_RANGE[0] - 0.05
    assert fill.max() < fractal.FILL_RANGE[1] + 0.05


def test_a_negative_is_the_same_image_turned_over() -> None:
    plain = dataclasses.replace(SMALL, noise=0.0)
    negative = dataclasses.replace(plain, negatives=1.0)
    difference = images_of(plain).int() + images_of(negative).int() - 255
    assert difference.abs().max() <= 1  # each of the two is rounded to a byte


def test_a_seed_without_usable_classes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fractal, "FILL_RANGE", (2.0, 3.0))
    monkeypatch.setattr(fractal, "MAX_ROUNDS", 1)
    with pytest.raises(DataError, match=r"seed 77: no usable function system for classes \[0, 1\]"):
        fractal._class_systems(77, 2)


def test_jitter_of_zero_changes_no_map_and_the_largest_keeps_contraction() -> None:
    maps, _ = fractal._class_systems(0, 20)
    keys = torch.arange(20)
    torch.testing.assert_close(fractal._jitter_maps(maps, keys, 0.0), maps)
    changed = fractal._jitter_maps(maps, keys, 0.5)
    assert torch.linalg.matrix_norm(changed[..., :4].unflatten(-1, (2, 2)), ord=2).max() < 0.93


def test_hashed_numbers_are_uniform_and_unrelated() -> None:
    numbers = fractal._uniform(torch.arange(64), purpose=3, count=512)
    assert 0 <= numbers.min() <= numbers.max() < 1
    # standard errors over 32768 numbers: 0.0016 for the mean, 0.0005 for the variance; five of each
    assert abs(numbers.mean() - 1 / 2) < 0.008
    assert abs(numbers.var() - 1 / 12) < 0.0025
    related = torch.corrcoef(numbers) - torch.eye(64)
    assert related.abs().max() < 0.25  # 1 / sqrt(512) = 0.044 each; the largest of 2016 pairs is near 0.16


def test_errors_of_a_config_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        FractalConfig(classes=1, noise=0.9)
    assert "classes=1 must be an integer in 2..100000" in str(caught.value)
    assert "noise=0.9 must be a number in 0..0.3" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [("image_size", 64.0), ("seed", True), ("jitter", "0.1"), ("jitter", float("nan"))]
)
def test_a_field_of_another_type_is_refused(field: str, value: object) -> None:
    config = FractalConfig()
    object.__setattr__(config, field, value)  # past the type checks of the test run, which users do not have
    with pytest.raises(ConfigError, match=f"{field}={value!r} must be"):
        config.__post_init__()


def test_unknown_splits_and_indices_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown split 'test'; choose 'train' or 'val'"):
        fractal._check_split("test")
    with pytest.raises(ConfigError, match=r"indices 0..40: split 'train' has images 0..39"):
        render(SMALL, "train", torch.tensor([0, 40]))
    with pytest.raises((ConfigError, TypeCheckError), match=r"1-d tensor of int64|Type-check error"):
        render(SMALL, "train", torch.zeros(2, 2, dtype=torch.int64))


def test_samples_are_images_with_labels(tmp_path: Path) -> None:
    dataset = open_fractals(SMALL, "train", tmp_path)
    image, label = dataset[7]
    assert isinstance(image, Image.Image)
    assert (image.mode, image.size, label) == ("RGB", (32, 32), 2)
    assert len(dataset) == 40
    assert dataset.classes == ["fractal_0", "fractal_1", "fractal_2", "fractal_3", "fractal_4"]
    assert dataset[-1][1] == 4
    with pytest.raises(IndexError):
        dataset[40]
    dataset.transform = lambda picture: torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    assert torch.equal(dataset[7][0], dataset.tensors()[0][7])


def test_tensors_are_the_rendered_images(tmp_path: Path) -> None:
    images, labels = open_fractals(SMALL, "val", tmp_path).tensors()
    assert torch.equal(images, images_of(SMALL, "val"))
    assert torch.equal(labels, torch.arange(5).repeat(4))


def test_a_cache_is_read_back_and_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    first, _ = open_fractals(SMALL, "val", tmp_path, progress=lambda done, total: seen.append((done, total))).tensors()
    assert seen == [(20, 20)]
    monkeypatch.setattr(fractal, "render", None)
    again, _ = open_fractals(SMALL, "val", tmp_path).tensors()
    assert torch.equal(first, again)


@pytest.mark.parametrize("left", [0, 50, 200, -1])
def test_a_truncated_cache_is_drawn_again(tmp_path: Path, left: int) -> None:
    first = open_fractals(SMALL, "val", tmp_path).tensors()[0].clone()
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:left])
    assert torch.equal(open_fractals(SMALL, "val", tmp_path).tensors()[0], first)


def test_a_cache_of_another_shape_or_with_a_pickle_is_drawn_again(tmp_path: Path) -> None:
    first = open_fractals(SMALL, "val", tmp_path).tensors()[0].clone()
    (path,) = tmp_path.iterdir()
    for wrong in (np.zeros((20, 3, 16, 16), np.uint8), np.zeros((20, 3, 32, 32)), np.array([{}], dtype=object)):
        np.save(path, wrong, allow_pickle=True)
        assert torch.equal(open_fractals(SMALL, "val", tmp_path).tensors()[0], first)


def test_a_failed_drawing_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_fractals(SMALL, "val", tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_writing_into_the_tensors_does_not_reach_the_cache(tmp_path: Path) -> None:
    images, _ = open_fractals(SMALL, "val", tmp_path).tensors()
    first = images.clone()
    images.zero_()
    assert torch.equal(open_fractals(SMALL, "val", tmp_path).tensors()[0], first)


def test_a_cache_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="pass a writable cache_dir or set VITSLIM_CACHE"):
        open_fractals(SMALL, "val", tmp_path / "file" / "below")


def test_the_cache_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSLIM_CACHE", str(tmp_path / "cache"))
    open_fractals(SMALL, "val")
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_cache_names_differ_for_whatever_changes_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[dict[str, float]] = [{}, {"seed": 1}, {"noise": 0.01}, {"jitter": 0.01}, {"image_size": 16}]
    configs = [dataclasses.replace(SMALL, **json.loads(json.dumps(change))) for change in changes]
    names = {fractal_set._cache_name(config, split) for config in configs for split in ("train", "val")}
    assert len(names) == 10
    monkeypatch.setattr(fractal_set, "GENERATOR_VERSION", 2)
    assert fractal_set._cache_name(SMALL, "val") not in names


def test_a_dataset_of_other_images_is_refused() -> None:
    with pytest.raises(DataError, match="this config's 'val' split is"):
        FractalDataset(SMALL, "val", np.zeros((3, 3, 32, 32), np.uint8))
