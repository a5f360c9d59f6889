"""Folders and files that are not what they seem: pipes, devices, loops, images of odd shapes and kinds."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.conftest import make_image
from vitslim.data import DataConfig, Loader, open_data
from vitslim.errors import DataError

MakeFolder = Callable[..., Path]


def all_of(root: Path, wanted: Any, **options: Any) -> Loader:
    """A loader that went through all images once."""
    config = DataConfig(source=str(root), max_corrupt_share=1.0, **options)
    loader = open_data(config, split="val", preprocessing=wanted, batch_size=4)
    assert all(batch.images.isfinite().all() for batch in loader)
    return loader


@pytest.mark.parametrize("kind", ["pipe", "device", "nowhere", "itself", "folder", "empty", "cut"])
def test_what_is_no_image_is_counted_and_not_waited_for(make_folder: MakeFolder, wanted: Any, kind: str) -> None:
    root = make_folder(per_class=1)
    path = root / "ant" / "odd.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind in ("empty", "cut"):
        make_image(3, side=200).save(path)
        path.write_bytes(path.read_bytes()[: 0 if kind == "empty" else 60])
    else:
        path.symlink_to({"device": "/dev/zero", "nowhere": "nowhere", "itself": path.name}[kind])
    loader = all_of(root, wanted)
    # A folder is no file of that name.
    assert loader.corrupt.examples == (() if kind == "folder" else (os.path.join("ant", "odd.png"),))


def test_a_folder_that_links_lead_back_into_is_refused(make_folder: MakeFolder, wanted: Any) -> None:
    root = make_folder()
    (root / "ant" / "again").symlink_to("..")
    with pytest.raises(DataError, match=r"again leads by a link to .*, which was read already; remove the link"):
        all_of(root, wanted)


def test_a_folder_that_cannot_be_read_is_refused(
    make_folder: MakeFolder, wanted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def refuse(path: Any) -> Any:  # permissions do not bind who runs the tests as root
        if str(path).endswith("bee"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    root = make_folder()
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="bee cannot be read: Permission denied"):
        all_of(root, wanted)


@pytest.mark.parametrize("size", [(1, 1), (1, 20000), (20000, 1), (3, 500)])
def test_images_of_any_shape_are_read(tmp_path: Path, wanted: Any, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (255, 255, 255)).save(tmp_path / "odd.png")
    loader = all_of(tmp_path, wanted)
    assert loader.corrupt.count == 0
    torch.testing.assert_close(next(iter(loader)).images, torch.full((1, 3, 16, 16), 2.0))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "LA", "RGBA", "CMYK", "I;16", "transparent P"])
def test_images_of_any_kind_keep_their_brightness(tmp_path: Path, wanted: Any, mode: str) -> None:
    white = Image.new("RGB", (20, 20), (255, 255, 255))
    if mode == "I;16":
        Image.fromarray(np.full((20, 20), 128 * 256, dtype=np.uint16)).save(tmp_path / "odd.png")
    elif mode == "transparent P":
        white.convert("P").save(tmp_path / "odd.png", transparency=bytes([0] * 8))
    else:
        white.convert(mode).save(tmp_path / "odd.png", "TIFF" if mode == "CMYK" else "PNG")
    level = 128 / 255 if mode == "I;16" else 1.0
    images = next(iter(all_of(tmp_path, wanted))).images
    torch.testing.assert_close(images, torch.full((1, 3, 16, 16), (level - 0.5) / 0.25))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_images_without_a_known_range_are_counted_not_guessed(tmp_path: Path, wanted: Any, mode: str) -> None:
    make_image(1).save(tmp_path / "plain.png")
    Image.new(mode, (20, 20), 1).save(tmp_path / "odd.png", "TIFF")
    assert all_of(tmp_path, wanted).corrupt.examples == ("odd.png",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ant\nbee\n", "has no line for 1 of the 3 class folders: cat"),
        (b"ant\nbee\nbee\ncat\n", "has empty lines or names a class twice"),
        (b"ant\n\nbee\ncat\n", "has empty lines or names a class twice"),
        (b"\xff\xfe\xff", "it cannot be read"),
        (None, r"must be a text file \(\.txt\)"),
    ],
)
def test_a_class_map_of_something_else_is_refused(
    make_folder: MakeFolder, tmp_path: Path, wanted: Any, content: bytes | None, message: str
) -> None:
    path = tmp_path / "classes.txt"
    os.mkfifo(path) if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        all_of(make_folder(), wanted, class_map=str(path))


@pytest.mark.parametrize(
    "options", ["train_per_class=1000000", "classes=100000,image_size=1024", "classes=1000,val_per_class=1000000"]
)
def test_more_fractals_than_fit_are_refused_with_their_size(options: str, wanted: Any) -> None:
    split = "val" if "val" in options else "train"
    with pytest.raises(DataError, match=r"are \d+\.\d GiB, more than the \d+\.\d GiB that there is room for"):
        open_data(f"fractals:{options}", split=split, preprocessing=wanted, batch_size=2)
