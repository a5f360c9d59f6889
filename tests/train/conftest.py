"""A tiny ViT, a tiny teacher, and loaders over a handful of built-in images."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitslim.data import FractalConfig, Loader, open_data
from vitslim.models import preprocessing

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 4}
IMAGES = FractalConfig(classes=4, image_size=32, train_per_class=10, val_per_class=5)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fractals")


@pytest.fixture(autouse=True)
def use_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSLIM_CACHE", str(cache))


@pytest.fixture
def build() -> Callable[..., VisionTransformer]:
    def built(seed: int = 0, **changes: object) -> VisionTransformer:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = VisionTransformer(**{**SIZE, **changes})  # pyright: ignore[reportArgumentType]
            with torch.no_grad():  # timm's start of 0.02 is nearly constant in the images
                for module in model.modules():
                    if isinstance(module, nn.Linear):
                        module.weight.mul_(4)
                if isinstance(model.head, nn.Linear):
                    model.head.weight.normal_(std=0.5)
        return model.eval()

    return built


@pytest.fixture
def open_loader() -> Callable[..., Loader]:
    def opened(split: str = "train", batch_size: int = 8, images: FractalConfig = IMAGES, **options: object) -> Loader:
        like = VisionTransformer(**SIZE)  # pyright: ignore[reportArgumentType]
        return open_data(
            images, split=split, preprocessing=preprocessing(like), batch_size=batch_size,
            training=split == "train", **options,
        )  # fmt: skip

    return opened


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
