"""Leaving height and width of the images free, and the proof that the file follows them."""

from typing import Any, cast

import torch
from torch import nn

from vitslim.errors import UnsupportedModelError
from vitslim.models import preprocessing, take_any_size_
from vitslim.runtime import Precision, working_copy
from vitslim.targets.input_format import InputFormat, spatial_axes
from vitslim.targets.onnx.cpu_session import cpu_outputs
from vitslim.targets.parity.tolerances import TOLERANCES
from vitslim.trunk import is_converted, trunk_of, watch_grid_

_PATCHES = 4096  # of the longer side, at most
_PER_SIZE = "export one file per size instead (model.set_input_size(...), or --img-size when converting)"


class OneSizeError(UnsupportedModelError):
    """A model whose files take images of one size; ``reason`` says why, and what to do."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"dynamic_image_size: {reason}")
        self.reason = reason


def any_size(model: nn.Module) -> nn.Module:
    """A working copy of a model that takes images of any size in whole patches, whatever size it was opened for.

    Raises:
        OneSizeError: its position tables, or a method that it was converted with, serve one size.
    """
    fixed = trunk_of(model).needs_one_size if is_converted(model) else {}
    if fixed:
        what, why = list(fixed.items())[-1]  # the first may be a step in which everybody still takes part
        raise OneSizeError(f"this model has steps with '{what}': {why}; {_PER_SIZE}")
    copy = working_copy(model)
    try:
        take_any_size_(copy)
    except UnsupportedModelError as error:
        raise OneSizeError(f"{error}; {_PER_SIZE}") from None
    if is_converted(copy):
        watch_grid_(cast(nn.Module, copy.patch_embed))
    return copy


def image_axes(model: nn.Module, input_format: InputFormat) -> dict[int, Any]:
    """The free axes of images for torch.export: height and width in multiples of the patch size."""
    height, width = _patch_size(model)
    rows, columns = (torch.export.Dim(name, min=2, max=_PATCHES) for name in ("rows", "columns"))
    return dict(zip(spatial_axes(input_format), (height * rows, width * columns), strict=True))


def probe_sizes(model: nn.Module) -> list[tuple[int, int]]:
    """Image sizes that are not the model's own, the first one neither square nor with one of its sides."""
    height, width = preprocessing(model).image_size
    patch_height, patch_width = _patch_size(model)
    return [
        (height + patch_height, width + 3 * patch_width),
        (height, width),
        (height + 2 * patch_height, width + 2 * patch_width),
    ]


def require_free_sizes(
    graph: Any, model: nn.Module, sizes: list[tuple[int, int]], precision: Precision, input_format: InputFormat
) -> None:
    """Refuse a graph that computes another function at another image size, as a table made while tracing does.

    Args:
        model: in float32, taking what the graph takes.

    Raises:
        OneSizeError: with the sizes and the difference.
    """
    channels = preprocessing(model).channels
    generator = torch.Generator().manual_seed(0)
    for height, width in sizes:
        shape = (2, height, width, channels) if input_format == "uint8-nhwc" else (2, channels, height, width)
        noise = torch.randn(shape, generator=generator)
        images = noise if input_format == "normalized" else (noise * 64 + 128).clamp(0, 255).to(torch.uint8)
        with torch.no_grad():
            expected = model(images)
        given = cpu_outputs(graph, images, precision)
        difference = float((given - expected).abs().max()) / max(float(expected.abs().max()), 1e-12)
        if not difference <= TOLERANCES[precision].relative:
            raise OneSizeError(
                f"at {height}x{width} the file would differ from the model by {difference:.2g} of "
                f"the outputs' scale: this {type(model).__name__} makes a table for the traced size (rotary positions "
                "do); export one file per size"
            )


def _patch_size(model: nn.Module) -> tuple[int, int]:
    embed: Any = model.patch_embed
    height, width = embed.patch_size
    return int(height), int(width)
