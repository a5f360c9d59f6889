"""Where a case happens: a folder with a saved model, images, and things that are no files."""

import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml
from PIL import Image

from tests.pipeline.tiny import RECIPE

SHORT_EXPORT = {"images": 4, "batches": [1]}
IMAGE_FOLDER_CLASSES = ("a", "b", "c", "d")


@dataclass(frozen=True)
class Case:
    """One thing to try: what it is, for messages, and the doing of it, within the folder of the case."""

    what: str
    act: Callable[[], object]
    is_command: bool = False


def make_originals(root: Path, *, trained: bool) -> None:
    """What all cases start from: a student's folder, with what training leaves or without, and a folder of images."""
    from vitslim.pipeline import run
    from vitslim.recipe import read_recipe

    recipe = {**RECIPE, "finetune_dense": False, "report": True, "export": SHORT_EXPORT}
    untrained = {} if trained else {"analyze": None, "warm_start": None, "distill": None, "report": False}
    run(read_recipe({**recipe, **untrained}), root / "student")
    run(read_recipe({"model": recipe["model"], "report": False}), root / "dense")
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    for split in ("train", "val"):
        for number, name in enumerate(IMAGE_FOLDER_CLASSES * 2):
            folder = root / "images" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (number * 30, 90, 200)).save(folder / f"{number}.png")


def lay_out(originals: Path, folder: Path) -> Path:
    """A fresh folder of a case: copies of the originals, with a pipe, a device, a loop and other surprises beside."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(originals, folder)
    (folder / "a-folder").mkdir()
    os.mkfifo(folder / "a-pipe")
    (folder / "a-device").symlink_to("/dev/zero")
    (folder / "a-loop").symlink_to("a-loop")
    (folder / "an-empty-file").touch()
    for suffix in (".onnx", ".safetensors"):
        (folder / f"a-text{suffix}").write_text("not what its name says\n")
    return folder


def digest(folder: Path) -> dict[str, str]:
    """Everything in a folder by its path, with what it holds."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*"))}


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"-> {os.readlink(path)}"
    return hashlib.sha1(path.read_bytes()).hexdigest() if path.is_file() else oct(path.stat().st_mode)
