"""What images a file takes: normalised ones, or the bytes of a picture."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vitslim.errors import CheckpointError, ConfigError
from vitslim.models import Preprocessing

InputFormat = Literal["normalized", "uint8-nchw", "uint8-nhwc"]
"""``normalized``: float (b, c, h, w), mean and std applied. ``uint8-…``: 0..255, these applied inside the file."""

INPUT_FORMATS: tuple[InputFormat, ...] = get_args(InputFormat)


def spatial_axes(input_format: InputFormat) -> tuple[int, int]:
    """Where height and width stand in images of a form."""
    return (1, 2) if input_format == "uint8-nhwc" else (2, 3)


def normalize_inside_(model: nn.Module, image: Preprocessing, input_format: InputFormat, dtype: torch.dtype) -> None:
    """Let a model take images of ``form`` and compute in ``dtype``; a hook, so that the weights keep their names."""
    if input_format == "normalized":
        return
    # (x / 255 - mean) / std = x · 1 / (255 std) - mean / std, in float32 before anything is rounded
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (image.mean, image.std))
    factor, shift = 1 / (255 * std), -mean / std
    model.register_buffer("image_factor", factor, persistent=False)
    model.register_buffer("image_shift", shift, persistent=False)

    def normalize(module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        images = inputs[0].permute(0, 3, 1, 2) if input_format == "uint8-nhwc" else inputs[0]
        return ((images.float() * module.image_factor + module.image_shift).to(dtype),)

    model.register_forward_pre_hook(normalize)


def describe_input(image: Preprocessing, input_format: InputFormat) -> dict[str, Any]:
    """The metadata entry ``input``: what the file takes, what it does itself, what the caller has to do before."""
    size = "x".join(map(str, image.image_size))
    before = [f"resize and centre crop to {size} ({image.interpolation}, crop_pct {image.crop_pct:g})"]
    normalisation = ["scale 0..255 to 0..1", "subtract mean", "divide by std"]
    is_raw = input_format != "normalized"
    return {
        "form": input_format,
        "layout": "NHWC" if input_format == "uint8-nhwc" else "NCHW",
        "range": [0, 255] if is_raw else None,
        "inside": normalisation if is_raw else [],
        "before": before if is_raw else [*before, *normalisation],
    }


def format_of(metadata: Mapping[str, str]) -> InputFormat:
    """The form that a file says it takes; files that say nothing take normalised images.

    Raises:
        ConfigError: the file asks for a form that this version does not know.
        CheckpointError: what it says is not what vitslim writes.
    """
    import json

    if "input" not in metadata:
        return "normalized"
    try:
        form = json.loads(metadata["input"]).get("form")
    except (ValueError, AttributeError, RecursionError):
        raise CheckpointError(
            f"the file's metadata say input={metadata['input'][:100]!r}, which vitslim did not write; export it again"
        ) from None
    if form not in INPUT_FORMATS:
        raise ConfigError(f"the file takes images of the form {form!r}; this vitslim knows {', '.join(INPUT_FORMATS)}")
    return form


def as_given_to(input_format: InputFormat, images: Tensor, image: Preprocessing) -> tuple[Tensor, Tensor]:
    """Normalised images as a file of this form takes them, and the normalised images that these really are.

    Bytes hold 256 values, so what goes through them comes back rounded.
    """
    if input_format == "normalized":
        return images, images
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (image.mean, image.std))
    pixels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    normalized = (pixels.float() / 255 - mean) / std
    return (pixels.permute(0, 2, 3, 1).contiguous() if input_format == "uint8-nhwc" else pixels), normalized
