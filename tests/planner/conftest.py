"""A small dense model with images to measure on."""

from typing import Any

import pytest
import torch
from torch import nn

from vitslim.planner import DamageMeter
from vitslim.plans import cost
from vitslim.trunk import plan_of


@pytest.fixture(scope="session")
def model() -> nn.Module:
    import timm

    torch.manual_seed(0)
    size: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
    return timm.create_model("vit_tiny_patch16_224", num_classes=10, **size).eval()


@pytest.fixture(scope="session")
def batches() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(8, 3, 32, 32) for _ in range(2)]


@pytest.fixture(scope="session")
def meter(model: nn.Module, batches: list[torch.Tensor]) -> DamageMeter:
    return DamageMeter(model, batches[:1], batches[1:], [torch.arange(8)])


@pytest.fixture(scope="session")
def price(model: nn.Module) -> Any:
    """Multiply-accumulates as a share of the dense model's."""
    whole = cost(plan_of(model)).macs
    return lambda plan: cost(plan).macs / whole
