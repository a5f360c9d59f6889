"""Simple ways to make a dense model cheaper, which a conversion has to beat."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitslim.errors import ConfigError, MissingDependencyError
from vitslim.models import preprocessing, remember_depth_, token_layout, trace

SHARE = 2 / 3
"""Of the dense model's work, roughly: that of Evo-ViT's paper setting, 3.03 of 4.60 GMAC."""

_TOME_R, _TOME_TOKENS = 13, 197  # tokens merged per block in the paper's DeiT-S figures, at 224 px


def drop_blocks(model: nn.Module, dropped: Sequence[int]) -> nn.Module:
    """A copy of a dense model without some of its blocks.

    Raises:
        ConfigError: a block that is not there, or none would be left.
    """
    blocks = list(cast("list[nn.Module]", model.blocks))
    unknown = sorted(set(dropped) - set(range(len(blocks))))
    if unknown or len(set(dropped)) >= len(blocks):
        raise ConfigError(f"dropped={sorted(dropped)}: wanted some but not all of the blocks 0..{len(blocks) - 1}")
    shallow = copy.deepcopy(model)
    kept = [block for index, block in enumerate(cast("list[nn.Module]", shallow.blocks)) if index not in set(dropped)]
    shallow.blocks = nn.Sequential(*kept)
    return remember_depth_(shallow)


def blocks_to_drop(depth: int, share: float = SHARE, influences: Sequence[float] | None = None) -> list[int]:
    """Which blocks to drop so that about ``share`` of them are left; the first and the last stay.

    Args:
        influences: how much each block changes its input; those with the least go. Not given: the middle ones go.

    Raises:
        ConfigError: the model is too shallow for it.
    """
    count = depth - round(share * depth)
    if not 0 < count <= depth - 2:
        raise ConfigError(f"{count} of {depth} blocks cannot be dropped with the first and the last kept")
    inner = range(1, depth - 1)
    if influences is None:
        first = 1 + (len(inner) - count) // 2
        return list(range(first, first + count))
    return sorted(sorted(inner, key=lambda index: influences[index])[:count])


def block_influences(model: nn.Module, images: Float[Tensor, "b c h w"]) -> list[float]:
    """How far each block turns its tokens: 1 minus the mean cosine between a token before and after it.

    Source: Men et al. 2024, "ShortGPT", arXiv 2403.03853, equation 1 (block influence).
    """
    seen = trace(model, images)
    pairs = zip(seen.block_inputs, seen.block_outputs, strict=True)
    # BI_l = 1 - E_t [ x_l,t · x_{l+1},t / (|x_l,t| |x_{l+1},t|) ]
    return [1 - float(F.cosine_similarity(before, after, dim=-1).mean()) for before, after in pairs]


def lower_size(model: nn.Module, share: float = SHARE) -> tuple[int, int]:
    """The largest image size with about ``share`` of the patches: (height, width) in whole patches."""
    rows, columns = token_layout(model).grid
    height, width = preprocessing(model).image_size
    scale = math.sqrt(share)
    return max(1, int(rows * scale)) * (height // rows), max(1, int(columns * scale)) * (width // columns)


def at_lower_size(model: nn.Module, share: float = SHARE) -> nn.Module:
    """A copy of a dense model that takes smaller images; position embeddings are resized as timm does."""
    smaller = copy.deepcopy(model)
    cast(Any, smaller).set_input_size(img_size=lower_size(model, share))
    return smaller


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


def dropped_in_the_middle(model: nn.Module) -> nn.Module:
    """A copy without the middle third of its blocks; speed does not depend on which go."""
    return drop_blocks(model, blocks_to_drop(len(cast("list[nn.Module]", model.blocks))))


BASELINES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "depth-drop": dropped_in_the_middle,
    "lower-resolution": at_lower_size,
    "tome": with_tome,
    "torch-pruning": with_torch_pruning,
}
"""By the name of their rows. The smaller sibling is another model and is opened by its own name."""


def _require(module: str, name: str) -> None:
    if find_spec(module) is None:
        raise MissingDependencyError(f"{name} is not installed; install it to have its row")
