"""Simple ways to make a dense model cheaper, which a conversion has to beat."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import nn

from vitslim.errors import MissingDependencyError
from vitslim.methods import MethodConfig, convert
from vitslim.methods.depth import DepthConfig
from vitslim.methods.mlp import MlpConfig
from vitslim.methods.resolution import ResolutionConfig
from vitslim.models import preprocessing, token_layout

SHARE = 2 / 3
"""Of the dense model's work, roughly: that of Evo-ViT's paper setting, 3.03 of 4.60 GMAC."""

_TOME_R, _TOME_TOKENS = 13, 197  # tokens merged per block in the paper's DeiT-S figures, at 224 px


def with_tome(model: nn.Module) -> nn.Module:
    """A copy patched by the user's own ToMe (``pip`` package ``tome``), at the paper's rate of merging.

    Raises:
        MissingDependencyError: it is not installed.
    """
    _require("tome", "ToMe (the package tome)")
    import tome  # pyright: ignore[reportMissingImports]

    merged = copy.deepcopy(model)
    tome.patch.timm(merged)
    cast(Any, merged).r = round(_TOME_R * token_layout(model).tokens / _TOME_TOKENS)
    return merged


def with_torch_pruning(model: nn.Module) -> nn.Module:
    """A copy whose MLPs the user's own Torch-Pruning has narrowed by half, which leaves two thirds of the linear work.

    Attention stays as it is, since a pruned head size does not run through timm's forward.

    Raises:
        MissingDependencyError: it is not installed.
    """
    _require("torch_pruning", "Torch-Pruning (pip install torch-pruning)")
    import torch_pruning  # pyright: ignore[reportMissingImports]

    pruned = copy.deepcopy(model).requires_grad_(True)
    hidden = {block.mlp.fc1 for block in cast(Any, pruned).blocks}
    wants = preprocessing(model)
    device = next(pruned.parameters()).device
    pruner = torch_pruning.pruner.MagnitudePruner(
        pruned,
        torch.zeros(1, wants.channels, *wants.image_size, device=device),
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=[layer for layer in pruned.modules() if isinstance(layer, nn.Linear) and layer not in hidden],
    )
    pruner.step()
    return pruned.eval()


CONVERSIONS: dict[str, MethodConfig] = {
    "depth-drop": DepthConfig(),  # an analysis decides which blocks go; speed does not depend on it
    "narrow-mlp": MlpConfig(keep=0.5, widths="even"),
    "lower-resolution": ResolutionConfig(keep=SHARE),
}
"""Baselines that are conversions."""

BASELINES: dict[str, Callable[[nn.Module], nn.Module]] = {
    **{name: partial(convert, method=config) for name, config in CONVERSIONS.items()},
    "tome": with_tome,
    "torch-pruning": with_torch_pruning,
}
"""By the name of their rows. The smaller sibling is another model and is opened by its own name."""


def _require(module: str, name: str) -> None:
    if find_spec(module) is None:
        raise MissingDependencyError(f"{name} is not installed; install it to have its row")
