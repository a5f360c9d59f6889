"""A model of one's own through the command line: its architecture from a file, its images as it was trained."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.transforms.functional import to_tensor

from tests.authors import states
from tests.cli.conftest import Command
from tests.pipeline.tiny import QUIET
from tests.variants import lively_
from vitslim import checkpoint, evaluate
from vitslim.data import DataConfig
from vitslim.errors import VitslimWarning
from vitslim.models import preprocessing
from vitslim.pipeline import run
from vitslim.recipe import read_recipe

NAME = "vit_tiny_patch16_224"
CLASSES = 4
PREPARED = ("--set", "data.mean=[0.5,0.5,0.5]", "--set", "data.std=0.5", "--set", "data.crop_pct=1")


@cache
def own_vit() -> nn.Module:
    """Shared between tests: never change it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=6, num_heads=3, num_classes=CLASSES)
        return lively_(vit).eval()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "own.pth"
    torch.save(own_vit().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise as files, the same classes in both splits."""
    root = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "val"):
        for name in range(CLASSES):
            (root / split / str(name)).mkdir(parents=True)
            for number in range(4):
                pixels = torch.randint(256, (32, 32, 3), generator=generator, dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(root / split / str(name) / f"{number}.png")
    return root


@torch.no_grad()
def plain_loss(model: nn.Module, pictures: Path) -> float:
    """What the user's own script computes: pixels in -1..1, the class by its folder."""
    paths = sorted((pictures / "val").rglob("*.png"))
    images = torch.stack([(to_tensor(Image.open(path)) - 0.5) / 0.5 for path in paths])
    return F.cross_entropy(model(images), torch.tensor([int(path.parent.name) for path in paths])).item()


def test_a_file_is_measured_as_in_the_users_own_script(file: Path, pictures: Path, vitslim: Command) -> None:
    words = ("eval", NAME, "--weights", file, "--model-arg", "num_heads=3", "--data", pictures, "--json")
    outcome = vitslim(*words, *PREPARED, "--set", "data.interpolation=bicubic")
    assert outcome.code == 0, outcome.err
    assert outcome.document["loss"] == pytest.approx(plain_loss(own_vit(), pictures), rel=1e-5)
    assert outcome.err.count("note: ") == 1
    assert f"note: {NAME} with depth 6, embed_dim 48, patch_size 8, img_size 32, as {file} has them" in outcome.err
    assumed = vitslim(*words)
    assert assumed.document["loss"] != pytest.approx(outcome.document["loss"], rel=1e-3)
    assert assumed.err.count("note: nobody stated how this model's images were prepared") == 1
    assert "--set data.mean=0.5 --set data.std=0.5 --set data.interpolation=bicubic" in assumed.err


def test_a_module_is_measured_as_stated_and_keeps_what_was_stated(pictures: Path) -> None:
    model = copy.deepcopy(own_vit())
    with pytest.warns(VitslimWarning, match=r"assumed mean \[0\.485,0\.456,0\.406\], std .*, crop_pct 0\.875"):
        evaluate(model, pictures)
    stated = DataConfig(source=str(pictures), mean=(0.5,), std=(0.5,), crop_pct=1.0, interpolation="bicubic")
    assert evaluate(model, stated).loss == pytest.approx(plain_loss(model, pictures), rel=1e-5)
    assert preprocessing(model).assumed == ()
    assert evaluate(model, pictures).loss == pytest.approx(plain_loss(model, pictures), rel=1e-5)


def test_what_is_stated_is_saved_by_a_training_and_by_a_run(file: Path, pictures: Path, vitslim: Command) -> None:
    out = file.parent / "trained"
    own = (NAME, "--weights", file, "--model-arg", "num_heads=3")
    short = ("--batch-size", 8, "--set", "steps=1", "--set", "tensorboard=false", "--set", "precision=fp32")
    assert vitslim("train", *own, "--data", pictures, "--out", out, *short, *PREPARED).code == 0
    trained = checkpoint.load_config(out).input
    assert (trained.mean, trained.crop_pct, trained.assumed) == ((0.5,) * 3, 1.0, ("interpolation",))
    shown = vitslim("inspect", out)
    assert "bicubic (assumed)" in shown.out
    assert shown.out.count("(assumed)") == 1
    document: dict[str, Any] = {
        "model": {"name": NAME, "weights": str(file), "options": {"num_heads": 3}},
        "convert": [{"method": "skipat"}],
        "data": {
            "source": str(pictures),
            "batch_size": 8,
            "mean": 0.5,
            "std": 0.5,
            "crop_pct": 1,
            "interpolation": "box",
        },
        "distill": {"steps": 1, **QUIET},
        "finetune_dense": True,
        "report": False,
    }
    with pytest.warns(VitslimWarning, match="as .* has them"):
        run(read_recipe(document), file.parent / "run")
    for folder in ("run", "run/train/dense"):
        saved = checkpoint.load_config(file.parent / folder).input
        assert (saved.mean, saved.interpolation, saved.assumed) == ((0.5,) * 3, "box", ())


def test_another_way_to_prepare_images_is_another_run(pictures: Path, tmp_path: Path) -> None:
    model = {"name": "builtin", "pretrained": False, "img_size": 32, "num_classes": CLASSES}
    document: dict[str, Any] = {"model": model, "convert": [{"method": "skipat"}], "evaluate": False, "report": False}
    for mean in (0.25, 0.75):
        run(read_recipe({**document, "data": {"source": str(pictures), "mean": mean}}), tmp_path, overwrite=True)
        assert checkpoint.load_config(tmp_path).input.mean == (mean,) * 3


def test_a_file_is_inspected_with_what_is_assumed_of_its_images(file: Path, vitslim: Command) -> None:
    words = ("inspect", NAME, "--weights", file, "--model-arg", "num_heads=3")
    found = vitslim(*words, "--json").document
    assert (found["depth"], found["num_classes"], found["image_size"]) == (6, CLASSES, [32, 32])
    assert found["input"]["assumed"] == ["mean", "std", "interpolation", "crop_pct"]
    assert found["input"]["crop_pct"] == 0.9
    assert vitslim(*words).out.count("(assumed)") == 4
    assert "(assumed)" not in vitslim("inspect", "builtin").out


Line = Callable[[Path, Path], tuple[Any, ...]]

COMMANDS: dict[str, Line] = {
    "inspect": lambda file, images: ("inspect", NAME),
    "analyze": lambda file, images: ("analyze", NAME, "--no-pretrained", "--data", images, "--out", file.parent / "x"),
    "convert": lambda file, images: ("convert", NAME, "--method", "skipat", "--out", file.parent / "x", "--dry-run"),
    "train": lambda file, images: ("train", NAME, "--data", images, "--out", file.parent / "x"),
    "eval": lambda file, images: ("eval", NAME, "--data", images),
    "bench": lambda file, images: ("bench", NAME),
    "import": lambda file, images: ("import", file, "--from", "skipat", "--base", NAME, "--out", file.parent / "x"),
}
BAD_ARGUMENTS = {
    "colour=red": "unexpected keyword argument 'colour'",
    "patch_size=0": "cannot be built with",
    "num_heads": "--model-arg 'num_heads': wanted KEY=VALUE, such as patch_size=4",
    "img_size=32": "--model-arg img_size=32: img_size is not given here but with --img-size",
    "pretrained=false": "pretrained is not given here but with --no-pretrained",
}


@pytest.mark.parametrize("argument", BAD_ARGUMENTS)
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_arguments_of_the_model_and_refuses_those_that_build_none(
    command: str, argument: str, pictures: Path, tmp_path: Path, vitslim: Command
) -> None:
    torch.save(states.skipat_state(), tmp_path / "skipat.t7")
    outcome = vitslim(*COMMANDS[command](tmp_path / "skipat.t7", pictures), "--model-arg", argument)
    assert outcome.code == 2
    assert BAD_ARGUMENTS[argument] in outcome.error
    assert not (tmp_path / "x").exists()


READERS: dict[str, Callable[[Path, Path], tuple[Any, ...]]] = {
    "analyze": lambda folder, images: ("analyze", folder, "--data", images, "--out", images.parent / "x"),
    "convert": lambda folder, images: (
        *("convert", folder, "--method", "evo_vit", "--data", images),
        *("--out", images.parent / "x", "--dry-run"),
    ),
    "train": lambda folder, images: ("train", folder, "--data", images, "--out", images.parent / "x"),
    "eval": lambda folder, images: ("eval", folder, "--data", images),
    "verify": lambda folder, images: ("verify", folder, "--data", images),
    "quantize": lambda folder, images: ("quantize", folder, "--data", images),
    "export": lambda folder, images: ("export", folder, "--to", "torch-export", "--data", images),
}
BAD_SETTINGS = {
    "data.meen=0.5": "unknown key 'data.meen'; did you mean 'mean'?",
    "data.std=0": "data.std",
    "data.mean=[0.5,127]": "data.mean.1=127: ",
    "data.interpolation=cubic": "data.interpolation='cubic': ",
    "data.crop_pct=1.5": "data.crop_pct=1.5: ",
}


@pytest.mark.parametrize("setting", BAD_SETTINGS)
@pytest.mark.parametrize("command", READERS)
def test_every_command_that_reads_images_takes_how_they_are_prepared(
    command: str, setting: str, student: Path, pictures: Path, vitslim: Command
) -> None:
    outcome = vitslim(*READERS[command](student, pictures), "--set", setting)
    assert outcome.code == 2
    assert BAD_SETTINGS[setting] in outcome.error


@pytest.mark.parametrize("command", ["verify", "export"])
def test_how_images_are_prepared_needs_images(command: str, student: Path, vitslim: Command) -> None:
    words = ("--to", "torch-export") if command == "export" else ()
    assert "name them with --data" in vitslim(command, student, *words, "--set", "data.mean=0.5").error


def test_exported_files_are_compared_on_images_as_stated(
    student: Path, pictures: Path, tmp_path: Path, vitslim: Command
) -> None:
    words = ("--data", pictures, *PREPARED, "--json")
    assert vitslim("verify", student, *words, "--images", 4, "--batch", 2).code == 0
    found = vitslim("eval", student, "--backend", "ort", *words).document
    assert found["loss"] == pytest.approx(vitslim("eval", student, *words).document["loss"], rel=1e-4)


def test_a_model_of_other_classes_is_given_the_option(pictures: Path, vitslim: Command) -> None:
    outcome = vitslim("train", NAME, "--no-pretrained", "--img-size", 32, "--data", pictures, "--out", pictures / "x")
    assert "given 4 classes, model has 1000 outputs" in outcome.error
    assert "--num-classes 4" in outcome.error
