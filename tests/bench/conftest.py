"""Small models to count and to time."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 10}


@pytest.fixture(scope="session")
def dense() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VisionTransformer(**SIZE).eval()


@pytest.fixture(scope="session")
def shallow() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VisionTransformer(**SIZE | {"depth": 2}).eval()
