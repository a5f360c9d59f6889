"""Webdataset shards."""

import io
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.conftest import make_image
from vitslim.data import AugmentConfig, DataConfig, open_data
from vitslim.errors import DataError

# webdataset leaves the closing of its tar files to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def write_shard(path: Path, numbers: range, *, broken: int | None = None, shift: int = 0) -> None:
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            stream = io.BytesIO()
            make_image(number).save(stream, "PNG")
            pixels = b"gone" if number == broken else stream.getvalue()
            for name, content in (
                (f"{number:03d}.png", pixels),
                (f"{number:03d}.cls", str(number % 3 + shift).encode()),
            ):
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def test_shards_give_every_image_once(tmp_path: Path, wanted: Any) -> None:
    write_shard(tmp_path / "set-val-0.tar", range(5))
    write_shard(tmp_path / "set-val-1.tar", range(5, 9))
    loader = open_data(f"wds/{tmp_path}", split="val", preprocessing=wanted, batch_size=4)
    assert loader.num_images == 9
    assert len(loader) == 3
    batches = list(loader)
    assert torch.cat([batch.labels for batch in batches]).tolist() == [number % 3 for number in range(9)]
    levels = torch.cat([batch.images[:, 0, 8, 8] for batch in batches]) * 0.25 * 255 + 127.5
    assert levels.round().int().tolist() == list(range(9))


def test_unreadable_images_of_shards_are_counted(tmp_path: Path, wanted: Any) -> None:
    write_shard(tmp_path / "val.tar", range(6), broken=2)
    config = DataConfig(source=f"wds/{tmp_path}", max_corrupt_share=0.5)
    loader = open_data(config, split="val", preprocessing=wanted, batch_size=2)
    assert sum(len(batch) for batch in loader) == 5
    assert loader.corrupt.count == 1
    strict = open_data(f"wds/{tmp_path}", split="val", preprocessing=wanted, batch_size=2)
    with pytest.raises(DataError, match="1 of 6 images cannot be read"):
        list(strict)


def test_training_shards_are_shuffled_by_pass_and_seed(tmp_path: Path, wanted: Any) -> None:
    write_shard(tmp_path / "train.tar", range(12))
    still = AugmentConfig(hflip=0.0, crop_scale=(1.0, 1.0))
    loader = open_data(
        f"wds/{tmp_path}", split="train", preprocessing=wanted, batch_size=4, training=True, augment=still
    )
    orders = []
    for epoch in (0, 0):
        loader.set_epoch(epoch)
        orders.append(torch.cat([batch.images[:, 0, 8, 8] for batch in loader]))
    assert torch.equal(orders[0], orders[1])
    assert len(orders[0].unique()) == 12


def test_a_limit_takes_shard_images_from_all_along(tmp_path: Path, wanted: Any) -> None:
    write_shard(tmp_path / "val.tar", range(12))
    loader = open_data(f"wds/{tmp_path}", split="val", preprocessing=wanted, batch_size=4, limit=3)
    levels = torch.cat([batch.images[:, 0, 8, 8] for batch in loader]) * 0.25 * 255 + 127.5
    assert levels.round().int().tolist() == [3, 7, 11]


def test_labels_beyond_the_classes_are_refused(tmp_path: Path, wanted: Any) -> None:
    write_shard(tmp_path / "val.tar", range(6))
    config = DataConfig(source=f"wds/{tmp_path}", num_classes=2)
    with pytest.raises(DataError, match="a label is 2, but there are 2 classes"):
        list(open_data(config, split="val", preprocessing=wanted, batch_size=6))


def test_missing_shards_are_refused_with_what_was_looked_for(tmp_path: Path, wanted: Any) -> None:
    write_shard(tmp_path / "train-0.tar", range(2))
    with pytest.raises(DataError, match=r"has no split 'val': looked for \*val\*.tar.*found train-0.tar"):
        open_data(f"wds/{tmp_path}", split="val", preprocessing=wanted, batch_size=2)
    with pytest.raises(DataError, match="is not a folder"):
        open_data(f"wds/{tmp_path}/nowhere", split="val", preprocessing=wanted, batch_size=2)
    (tmp_path / "val.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match="not a readable tar file"):
        open_data(f"wds/{tmp_path}", split="val", preprocessing=wanted, batch_size=2)


@pytest.mark.parametrize("shift", [10**18, 10**30, -5])
def test_labels_that_number_no_class_are_refused(tmp_path: Path, wanted: Any, shift: int) -> None:
    write_shard(tmp_path / "val.tar", range(3), shift=shift)
    with pytest.raises(DataError, match=f"a label is {str(shift)[:2]}"):
        list(open_data(f"wds/{tmp_path}", split="val", preprocessing=wanted, batch_size=3))


def test_labels_are_held_against_the_model_where_nobody_says_how_many_classes_there_are(
    tmp_path: Path, wanted: Any
) -> None:
    write_shard(tmp_path / "val.tar", range(3))
    with pytest.raises(DataError, match="a label is 2, but there are 2 classes"):
        list(open_data(f"wds/{tmp_path}", split="val", preprocessing=wanted, batch_size=3, num_classes=2))


@pytest.mark.parametrize("name", ["val-{00000000..99999999}.tar", "val|7.tar", "pipe:val.tar", "val-..tar"])
def test_a_shard_that_is_called_like_a_pattern_is_refused(tmp_path: Path, wanted: Any, name: str) -> None:
    write_shard(tmp_path / name, range(2))
    with pytest.raises(DataError, match=r"takes .* for a pattern of names"):
        open_data(f"wds/{tmp_path}", split="val", preprocessing=wanted, batch_size=2)


def test_an_info_file_of_something_else_is_refused(tmp_path: Path, wanted: Any) -> None:
    write_shard(tmp_path / "set-val.tar", range(2))
    (tmp_path / "_info.json").write_text("3")
    with pytest.raises(DataError, match="cannot be opened as shards"):
        list(open_data(f"wds/{tmp_path}", split="val", preprocessing=wanted, batch_size=2))


def test_what_is_no_file_is_no_shard(tmp_path: Path, wanted: Any) -> None:
    os.mkfifo(tmp_path / "val.tar")
    with pytest.raises(DataError, match="has no split 'val'"):
        open_data(f"wds/{tmp_path}", split="val", preprocessing=wanted, batch_size=2)
