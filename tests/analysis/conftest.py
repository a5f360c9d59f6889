"""Small dense models of every block family, and image streams without labels."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 10}
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "vit": lambda: VisionTransformer(**SIZE),
    "vit_layer_scale": lambda: VisionTransformer(**SIZE, init_values=0.1, reg_tokens=2, qk_norm=True),
    "vit_no_class_token": lambda: VisionTransformer(**SIZE, class_token=False, global_pool="avg"),
    "eva": lambda: Eva(**SIZE, use_rot_pos_emb=True, swiglu_mlp=True),
    "eva_post_norm": lambda: Eva(**SIZE, use_post_norm=True),
    "beit": lambda: Beit(**SIZE, use_rel_pos_bias=True, init_values=0.1),
}


@dataclass
class Batch:
    images: Tensor


def lively(model: nn.Module) -> nn.Module:
    """timm starts with weights of 0.02 or less, where blocks hardly matter: widen them, in the linear layers alone."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(4)
        if isinstance(head := model.get_submodule("head"), nn.Linear):
            head.weight.normal_(std=0.3)
    return model.eval()


@pytest.fixture
def build() -> Callable[[str], nn.Module]:
    def built(family: str) -> nn.Module:
        torch.manual_seed(0)
        return lively(FAMILIES[family]())

    return built


@pytest.fixture
def vit(build: Callable[[str], nn.Module]) -> nn.Module:
    return build("vit")


@pytest.fixture
def batches() -> Callable[..., list[Batch]]:
    def made(*sizes: int, seed: int = 0) -> list[Batch]:
        generator = torch.Generator().manual_seed(seed)
        return [Batch(torch.randn(size, 3, 32, 32, generator=generator)) for size in sizes]

    return made
