"""Fractals drawn while training: the stored images, nothing stored, nothing left on another device."""

from pathlib import Path

import pytest
import torch

from vitslim.data import AugmentConfig, FractalConfig, open_data, open_rendered
from vitslim.data.fractal import render
from vitslim.errors import ConfigError
from vitslim.models import Preprocessing

IMAGES = FractalConfig(classes=3, image_size=32, train_per_class=8, val_per_class=4, negatives=0.2)
WANTS = Preprocessing(
    image_size=(32, 32),
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.3, 0.4),
    interpolation="bicubic",
    crop_pct=1.0,
    channels=3,
)
PLAIN = AugmentConfig(hflip=0.0, shift=0.0)


def opened(split: str = "train", wants: Preprocessing = WANTS, **options):
    return open_rendered(
        IMAGES, split=split, preprocessing=wants, batch_size=5, device="cpu", training=split == "train", **options
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_drawn_images_are_the_stored_ones_in_the_same_order(
    split: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITSLIM_CACHE", str(tmp_path))
    stored = open_data(
        IMAGES, split=split, preprocessing=WANTS, batch_size=5, training=split == "train", augment=PLAIN, seed=3
    )
    drawn = opened(split, seed=3)
    assert len(drawn) == len(stored)
    assert (drawn.num_images, drawn.num_classes, drawn.class_names) == (
        stored.num_images,
        stored.num_classes,
        stored.class_names,
    )
    for mine, theirs in zip(drawn, stored, strict=True):
        assert torch.equal(mine.images, theirs.images)
        assert torch.equal(mine.labels, theirs.labels)


def test_a_pass_is_taken_up_in_its_middle() -> None:
    whole = list(opened())
    loader = opened()
    loader.set_epoch(0, 2)
    rest = list(loader)
    assert len(rest) == len(whole) - 2
    assert torch.equal(rest[0].images, whole[2].images)
    loader.set_epoch(1)
    assert not torch.equal(next(iter(loader)).labels, whole[0].labels)


def test_processes_share_a_pass() -> None:
    parts = [opened().share(rank, 2) for rank in range(2)]
    assert [len(part) for part in parts] == [2, 2]
    assert not torch.equal(next(iter(parts[0])).images, next(iter(parts[1])).images)


def test_another_size_is_resized_to() -> None:
    wants = WANTS.model_copy(update={"image_size": (24, 24)})
    assert next(iter(opened(wants=wants))).images.shape == (5, 3, 24, 24)


def test_a_model_of_one_channel_is_refused() -> None:
    with pytest.raises(ConfigError, match="have 3 channels, the model wants 1"):
        opened(wants=WANTS.model_copy(update={"mean": (0.5,), "std": (0.5,), "channels": 1}))


def test_drawing_stays_on_the_device_it_was_asked_for() -> None:
    # The meta device refuses every operand of another device, as a GPU would.
    images = render(IMAGES, "train", torch.arange(7), "meta")
    assert images.device.type == "meta"
    assert images.shape == (7, 3, 32, 32)


@pytest.mark.gpu
def test_a_gpu_draws_the_same_images_up_to_rounding() -> None:
    indices = torch.arange(24)
    here, there = render(IMAGES, "train", indices), render(IMAGES, "train", indices, "cuda").cpu()
    # A point on the border of two pixels may fall to either side.
    assert ((here.int() - there.int()).abs() > 2).float().mean() < 0.01
