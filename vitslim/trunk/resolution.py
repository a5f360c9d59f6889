"""Feeding a student of another image size what its dense model is fed."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitslim.trunk.build import is_converted, trunk_of


def at_plan_size(model: nn.Module, images: Float[Tensor, "b c height width"]) -> Float[Tensor, "b c h w"]:
    """Images of the dense model's size at the size that a plan's resolution asks for; all others as they are."""
    if not is_converted(model):
        return images
    plan = trunk_of(model).model_plan
    if plan.image_size == plan.model.image_size or tuple(images.shape[-2:]) != plan.model.image_size:
        return images
    return F.interpolate(images, size=plan.image_size, mode="bicubic", antialias=True, align_corners=False)


def tokens_at_grid(
    tokens: Float[Tensor, "b n d"], prefix: int, grid: tuple[int, int], wanted: tuple[int, int]
) -> Float[Tensor, "b m d"]:
    """Tokens of one patch grid at the places of another, the prefix as it is.

    Args:
        prefix: tokens at the front that are no patches.
        grid: (rows, columns) of the given patches; ``wanted`` those of the result.
    """
    if grid == wanted:
        return tokens
    patches = tokens[:, prefix:].transpose(1, 2).unflatten(2, grid)
    resized = F.interpolate(patches, size=wanted, mode="bilinear", antialias=True, align_corners=False)
    return torch.cat([tokens[:, :prefix], resized.flatten(2).transpose(1, 2)], dim=1)
