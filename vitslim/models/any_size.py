"""Letting a model that was built for one image size take images of any."""

from typing import Any, cast

from timm.layers import Format, PatchEmbed
from torch import nn

from vitslim.errors import UnsupportedModelError


def take_any_size_(model: nn.Module) -> None:
    """Set what timm's constructors set for ``dynamic_img_size=True``; a model that has it stays as it is.

    Position embeddings are then resampled to the grid of each image.

    Raises:
        UnsupportedModelError: the model's positions are tables for one size.
    """
    if getattr(model, "dynamic_img_size", False):
        return
    embed: Any = getattr(model, "patch_embed", None)
    kind = type(model).__name__
    if not hasattr(model, "dynamic_img_size") or type(embed) is not PatchEmbed:
        raise UnsupportedModelError(
            f"this {kind} is built for one image size; timm has no form of it that takes others"
        )
    if getattr(model, "rope", None) is not None:
        raise UnsupportedModelError(f"this {kind} has rotary positions for one image size")
    embed.strict_img_size, embed.flatten, embed.output_fmt = False, False, Format.NHWC
    cast(Any, model).dynamic_img_size = True
