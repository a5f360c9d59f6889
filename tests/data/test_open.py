"""Folders of images, labelled or not, whole or damaged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vitslim.data import AugmentConfig, DataConfig, Loader, open_data, warn_of_shared_images
from vitslim.errors import ConfigError, DataError

MakeFolder = Callable[..., Path]
STILL = AugmentConfig(hflip=0.0, crop_scale=(1.0, 1.0))


def grey_levels(loader: Loader) -> list[int]:
    """Which images a pass gave, by their grey level."""
    levels = [(batch.images[:, 0, 8, 8] * 0.25 + 0.5) * 255 for batch in loader]
    return [round(float(level)) for level in torch.cat(levels)]


def labels_of(loader: Loader) -> Tensor:
    return torch.cat([batch.labels for batch in loader if batch.labels is not None])


def test_class_folders_give_labels_in_order_of_their_names(make_folder: MakeFolder, wanted: Any) -> None:
    loader = open_data(make_folder(), split="val", preprocessing=wanted, batch_size=5)
    assert (loader.num_images, loader.num_classes, loader.class_names) == (12, 3, ("ant", "bee", "cat"))
    assert len(loader) == 3
    assert labels_of(loader).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert grey_levels(loader) == list(range(12))


def test_images_come_in_the_size_mean_and_spread_that_the_model_wants(make_folder: MakeFolder, wanted: Any) -> None:
    loader = open_data(make_folder(per_class=1), split="val", preprocessing=wanted, batch_size=4)
    images = next(iter(loader)).images
    assert images.shape == (3, 3, 16, 16)
    expected = (torch.tensor([0.0, 1.0, 2.0]) / 255 - 0.5) / 0.25
    torch.testing.assert_close(images[:, :, 3, 3], expected[:, None].expand(3, 3))


def test_a_flat_folder_is_unlabelled(make_folder: MakeFolder, wanted: Any) -> None:
    loader = open_data(make_folder() / "bee", split="train", preprocessing=wanted, batch_size=2)
    assert not loader.labelled
    assert loader.num_classes is None
    assert all(batch.labels is None for batch in loader)


def test_split_folders_are_found_by_their_usual_names(make_folder: MakeFolder, wanted: Any) -> None:
    make_folder("set/train", per_class=2)
    root = make_folder("set/validation", per_class=1)
    sizes = {split: open_data(root, split=split, preprocessing=wanted, batch_size=2) for split in ("train", "val")}
    assert [loader.num_images for loader in sizes.values()] == [6, 3]
    assert sizes["val"].origin.endswith("set/validation")


def test_one_set_of_images_for_both_splits_is_said(make_folder: MakeFolder, wanted: Any) -> None:
    def both(root: Any) -> tuple[Loader, Loader]:
        train, val = (open_data(root, split=split, preprocessing=wanted, batch_size=2) for split in ("train", "val"))
        return train, val

    for split in ("train", "val"):
        sorted_root = make_folder(f"sorted/{split}")
    warn_of_shared_images(*both(sorted_root))
    warn_of_shared_images(*both("fractals:classes=4,train_per_class=1,val_per_class=1,image_size=16"))
    root = make_folder()
    with pytest.warns(UserWarning, match=r"images serves both training and evaluation: .* sort the images into train/"):
        warn_of_shared_images(*both(root))


def test_a_missing_split_is_refused_with_what_was_looked_for(make_folder: MakeFolder, wanted: Any) -> None:
    root = make_folder("set/train")
    with pytest.raises(DataError, match=r"has no split 'val': looked for val/, validation/.* found train/"):
        open_data(root, split="val", preprocessing=wanted, batch_size=2)
    config = DataConfig(source=str(root), val_split="held_out")
    with pytest.raises(DataError, match="looked for held_out/"):
        open_data(config, split="val", preprocessing=wanted, batch_size=2)


def test_a_missing_path_is_refused(tmp_path: Path, wanted: Any) -> None:
    with pytest.raises(DataError, match="does not exist; give a folder of images"):
        open_data(tmp_path / "nowhere", split="train", preprocessing=wanted, batch_size=2)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path, wanted: Any) -> None:
    (tmp_path / "images.txt").write_text("")
    with pytest.raises(DataError, match="is a file; give the folder"):
        open_data(tmp_path / "images.txt", split="train", preprocessing=wanted, batch_size=2)


def test_an_empty_folder_is_refused(tmp_path: Path, wanted: Any) -> None:
    with pytest.raises(DataError, match=r"holds no image; known endings are .*\.png"):
        open_data(tmp_path, split="train", preprocessing=wanted, batch_size=2)


def test_a_folder_without_a_readable_image_is_refused(tmp_path: Path, wanted: Any) -> None:
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"not an image")
    with pytest.raises(DataError, match="no readable image; tried 2 of 2"):
        open_data(tmp_path, split="train", preprocessing=wanted, batch_size=2)


def test_labels_that_are_needed_but_absent_are_refused(make_folder: MakeFolder, wanted: Any) -> None:
    with pytest.raises(DataError, match="has no labels and they are needed"):
        open_data(make_folder() / "ant", split="train", preprocessing=wanted, batch_size=2, labels="require")


def test_another_number_of_classes_than_the_model_has_is_refused(make_folder: MakeFolder, wanted: Any) -> None:
    root = make_folder()
    with pytest.raises(DataError, match="given 3 classes, model has 10 outputs"):
        open_data(root, split="train", preprocessing=wanted, batch_size=2, num_classes=10)
    open_data(root, split="train", preprocessing=wanted, batch_size=2, num_classes=3)
    open_data(root, split="train", preprocessing=wanted, batch_size=2, num_classes=10, labels="ignore")
    ignored = DataConfig(source=str(root), labels="ignore")
    assert not open_data(ignored, split="train", preprocessing=wanted, batch_size=2, num_classes=10).labelled


def test_a_class_map_names_the_classes_in_label_order(make_folder: MakeFolder, tmp_path: Path, wanted: Any) -> None:
    (tmp_path / "classes.txt").write_text("cat\nbee\nant\n")
    config = DataConfig(source=str(make_folder(per_class=1)), class_map=str(tmp_path / "classes.txt"))
    loader = open_data(config, split="val", preprocessing=wanted, batch_size=3)
    assert loader.class_names == ("cat", "bee", "ant")
    assert labels_of(loader).tolist() == [2, 1, 0]


def test_a_pickled_class_map_is_refused(make_folder: MakeFolder, tmp_path: Path, wanted: Any) -> None:
    (tmp_path / "classes.pkl").write_bytes(b"")
    config = DataConfig(source=str(make_folder()), class_map=str(tmp_path / "classes.pkl"))
    with pytest.raises(DataError, match="must be a text file"):
        open_data(config, split="val", preprocessing=wanted, batch_size=3)


def test_images_beside_class_folders_are_refused_unless_labels_are_left_out(
    make_folder: MakeFolder, wanted: Any
) -> None:
    root = make_folder()
    (root / "ant" / "00.png").rename(root / "stray.png")
    with pytest.raises(DataError, match="holds images beside 3 class folders"):
        open_data(root, split="train", preprocessing=wanted, batch_size=2)
    assert open_data(root, split="val", preprocessing=wanted, batch_size=2, labels="ignore").num_images == 12


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_skipped_counted_and_named(make_folder: MakeFolder, wanted: Any, workers: int) -> None:
    root = make_folder()
    (root / "bee" / "01.png").write_bytes(b"gone")
    truncated = (root / "cat" / "02.png").read_bytes()[:40]
    (root / "cat" / "02.png").write_bytes(truncated)
    config = DataConfig(source=str(root), max_corrupt_share=0.2)
    loader = open_data(config, split="val", preprocessing=wanted, batch_size=5, workers=workers)
    for _ in range(2):  # a second pass meets the same images again
        assert grey_levels(loader) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 11]
    assert loader.corrupt.count == 2
    assert sorted(Path(name).name for name in loader.corrupt.examples) == ["01.png", "02.png"]


def test_too_many_unreadable_images_are_an_error(make_folder: MakeFolder, wanted: Any) -> None:
    root = make_folder()
    (root / "bee" / "01.png").write_bytes(b"gone")
    loader = open_data(root, split="val", preprocessing=wanted, batch_size=5)
    with pytest.raises(DataError, match=r"1 of 12 images cannot be read, more than max_corrupt_share=0.01.*01.png"):
        list(loader)


def test_a_limit_takes_as_many_images_of_every_class(make_folder: MakeFolder, wanted: Any) -> None:
    root = make_folder(per_class=10)
    loaders = [open_data(root, split="val", preprocessing=wanted, batch_size=4, limit=6, seed=s) for s in (0, 0, 1)]
    assert torch.bincount(labels_of(loaders[0])).tolist() == [2, 2, 2]
    first, again, other = (grey_levels(loader) for loader in loaders)
    assert first == again
    assert first != other


def test_a_limit_below_one_is_refused(make_folder: MakeFolder, wanted: Any) -> None:
    with pytest.raises(ConfigError, match="limit=0"):
        open_data(make_folder(), split="val", preprocessing=wanted, batch_size=4, limit=0)


def test_training_shuffles_every_pass_anew_and_repeats_it_for_the_same_seed(
    make_folder: MakeFolder, wanted: Any
) -> None:
    def passes(seed: int) -> list[list[int]]:
        loader = open_data(
            make_folder(), split="train", preprocessing=wanted, batch_size=5, training=True, augment=STILL, seed=seed
        )
        found: list[list[int]] = []
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            found.append(grey_levels(loader))
        return found

    first, second = passes(0)
    assert len(first) == len(set(first)) == 10  # two whole batches; the incomplete one is left out
    assert first != second
    assert passes(0) == [first, second]
    assert passes(1) != [first, second]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_pass_that_is_taken_up_again_gives_the_very_same_batches(
    make_folder: MakeFolder, wanted: Any, workers: int
) -> None:
    """Augmentation included: each sample is a function of seed, pass and place, not of what was drawn before."""
    strong = AugmentConfig(crop_scale=(0.3, 1.0), auto_augment="rand-m9-mstd0.5", erase=0.5, color_jitter=0.4)

    def loader(processes: int) -> Loader:
        return open_data(
            make_folder(), split="train", preprocessing=wanted, batch_size=3, training=True, augment=strong,
            workers=processes,
        )  # fmt: skip

    whole = loader(0)
    whole.set_epoch(2)
    batches = list(whole)
    resumed = loader(workers)
    resumed.set_epoch(2, start_batch=2)
    rest = list(resumed)
    assert len(rest) == 2
    for expected, found in zip(batches[2:], rest, strict=True):
        assert torch.equal(expected.images, found.images)
        assert torch.equal(expected.labels, found.labels)


def test_a_pass_that_was_left_early_does_not_shorten_the_next(make_folder: MakeFolder, wanted: Any) -> None:
    loader = open_data(make_folder(), split="train", preprocessing=wanted, batch_size=4)
    whole = [len(batch) for batch in loader]
    for _ in loader:
        break
    assert [len(batch) for batch in loader] == whole


def test_the_position_counts_the_batches_of_the_pass(make_folder: MakeFolder, wanted: Any) -> None:
    loader = open_data(make_folder(), split="val", preprocessing=wanted, batch_size=5)
    assert [loader.position for _ in loader] == [1, 2, 3]
    assert loader.position == 0


def test_repeated_augmentation_shows_each_image_several_times_in_a_pass(make_folder: MakeFolder, wanted: Any) -> None:
    thrice = AugmentConfig(hflip=0.0, crop_scale=(1.0, 1.0), repeats=3)
    loader = open_data(make_folder(), split="train", preprocessing=wanted, batch_size=6, training=True, augment=thrice)
    levels = grey_levels(loader)
    assert len(levels) == 12
    assert all(levels.count(level) == 3 for level in levels)


def test_processes_share_a_pass_without_overlap(make_folder: MakeFolder, wanted: Any) -> None:
    loader = open_data(make_folder(), split="train", preprocessing=wanted, batch_size=3, training=True, augment=STILL)
    shares = [grey_levels(loader.share(rank, 2)) for rank in (0, 1)]
    assert [len(share) for share in shares] == [6, 6]
    assert sorted(shares[0] + shares[1]) == list(range(12))


def test_grey_models_get_one_channel(make_folder: MakeFolder, wanted: Any) -> None:
    grey = type(wanted)(mean=(0.5,), std=(0.25,), channels=1)
    assert next(iter(open_data(make_folder(), split="val", preprocessing=grey, batch_size=2))).images.shape[1] == 1
    with pytest.raises(ConfigError, match="wants 4 channels"):
        open_data(make_folder(), split="val", preprocessing=type(wanted)(channels=4), batch_size=2)
