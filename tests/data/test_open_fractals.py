"""The built-in images as batches."""

from pathlib import Path
from typing import Any

import pytest
import torch

from vitslim.data import AugmentConfig, FractalConfig, open_data
from vitslim.data.augment import augment_pixels, erase_boxes
from vitslim.data.fractal_set import open_fractals
from vitslim.errors import ConfigError

SMALL = FractalConfig(classes=4, image_size=16, train_per_class=6, val_per_class=2)
WORDS = "fractals:classes=4,image_size=16,train_per_class=6,val_per_class=2"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSLIM_CACHE", str(tmp_path))


def test_words_and_config_name_the_same_images(wanted: Any) -> None:
    loaders = [open_data(spec, split="val", preprocessing=wanted, batch_size=8) for spec in (WORDS, SMALL)]
    first, second = (next(iter(loader)) for loader in loaders)
    assert torch.equal(first.images, second.images)
    assert loaders[0].num_images == 8
    assert loaders[0].num_classes == 4


def test_batches_are_the_normalised_pixels(wanted: Any) -> None:
    pixels, labels = open_fractals(SMALL, "val").tensors()
    batch = next(iter(open_data(SMALL, split="val", preprocessing=wanted, batch_size=8)))
    torch.testing.assert_close(batch.images, (pixels / 255 - 0.5) / 0.25)
    assert torch.equal(batch.labels, labels)


def test_images_are_resized_to_what_the_model_wants(wanted: Any) -> None:
    larger = type(wanted)(image_size=(24, 32))
    assert next(iter(open_data(SMALL, split="val", preprocessing=larger, batch_size=8))).images.shape[2:] == (24, 32)


def test_a_resumed_pass_repeats_its_augmentation(wanted: Any) -> None:
    def loader() -> Any:
        augment = AugmentConfig(erase=0.5, shift=0.2)
        return open_data(SMALL, split="train", preprocessing=wanted, batch_size=6, training=True, augment=augment)

    whole, rest = loader(), loader()
    whole.set_epoch(1)
    rest.set_epoch(1, start_batch=3)
    last = list(whole)[3]
    assert torch.equal(last.images, next(iter(rest)).images)


def test_limited_images_are_spread_over_the_classes(wanted: Any) -> None:
    loader = open_data(SMALL, split="train", preprocessing=wanted, batch_size=8, limit=8)
    assert torch.bincount(next(iter(loader)).labels).tolist() == [2, 2, 2, 2]


def test_augmentation_of_single_images_is_possible_too(wanted: Any) -> None:
    augment = AugmentConfig(auto_augment="rand-m9-mstd0.5")
    loader = open_data(SMALL, split="train", preprocessing=wanted, batch_size=6, training=True, augment=augment)
    batches = list(loader)
    assert len(batches) == 4
    assert torch.bincount(torch.cat([batch.labels for batch in batches])).tolist() == [6, 6, 6, 6]


def test_unknown_options_are_refused_with_the_nearest_one(wanted: Any) -> None:
    with pytest.raises(ConfigError, match="no option 'clases'; did you mean 'classes'"):
        open_data("fractals:clases=4", split="val", preprocessing=wanted, batch_size=2)
    with pytest.raises(ConfigError, match="classes='many' is not a number"):
        open_data("fractals:classes=many", split="val", preprocessing=wanted, batch_size=2)
    with pytest.raises(ConfigError, match=r"seed='0\.5' is not a number"):
        open_data("fractals:seed=0.5", split="val", preprocessing=wanted, batch_size=2)


def test_augmentation_at_zero_strength_is_the_identity() -> None:
    pixels, _ = open_fractals(SMALL, "val").tensors()
    still = AugmentConfig(hflip=0.0, shift=0.0)
    assert torch.equal(augment_pixels(pixels, still, torch.Generator()), pixels)
    assert torch.equal(erase_boxes(pixels.float(), 0.0, torch.Generator()), pixels.float())


def test_a_certain_mirror_equals_a_flip() -> None:
    pixels, _ = open_fractals(SMALL, "val").tensors()
    assert torch.equal(augment_pixels(pixels, AugmentConfig(hflip=1.0, shift=0.0), torch.Generator()), pixels.flip(3))
    upside_down = AugmentConfig(hflip=0.0, vflip=1.0, shift=0.0)
    assert torch.equal(augment_pixels(pixels, upside_down, torch.Generator()), pixels.flip(2))


def test_a_shift_moves_every_pixel_by_the_same_few() -> None:
    ramp = torch.arange(20, dtype=torch.uint8).expand(8, 3, 20, 20)
    moved = augment_pixels(ramp, AugmentConfig(hflip=0.0, shift=0.2), torch.Generator().manual_seed(0)).int()
    steps = moved[:, 0, 0, 10] - 10
    assert steps.abs().max() <= 4  # 0.2 of 20 pixels
    assert steps.unique().numel() > 1
    assert torch.equal(moved[:, 0, 0, 5:15], torch.arange(5, 15) + steps[:, None])


def test_erasing_blanks_a_rectangle_of_2_to_33_percent() -> None:
    blank = erase_boxes(torch.ones(64, 1, 32, 32), 1.0, torch.Generator().manual_seed(0))
    shares = (blank == 0).float().mean(dim=(1, 2, 3))
    assert shares.min() > 0.01  # a rounding of the sides below 2 %
    assert shares.max() < 0.36
    rows, columns = (blank[:, 0] == 0).any(2).sum(1), (blank[:, 0] == 0).any(1).sum(1)
    torch.testing.assert_close(rows * columns / 1024, shares)
