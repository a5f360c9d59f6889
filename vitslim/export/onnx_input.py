"""What images a file takes: normalised ones, or the bytes of a picture."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from vitslim.errors import CheckpointError, ConfigError
from vitslim.models import Preprocessing

ImageForm = Literal["normalized", "uint8-nchw", "uint8-nhwc"]
"""``normalized``: float (b, c, h, w), mean and std applied. ``uint8-…``: 0..255, these applied inside the file."""

FORMS: tuple[ImageForm, ...] = get_args(ImageForm)


def spatial_axes(form: ImageForm) -> tuple[int, int]:
    """Where height and width stand in images of a form."""
    return (1, 2) if form == "uint8-nhwc" else (2, 3)


def normalize_inside_(model: nn.Module, image: Preprocessing, form: ImageForm, dtype: torch.dtype) -> None:
    """Let a model take images of ``form`` and compute in ``dtype``; a hook, so that the weights keep their names."""
    if form == "normalized":
        return
    # (x / 255 - mean) / std = x · 1 / (255 std) - mean / std, in float32 before anything is rounded
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (image.mean, image.std))
    factor, shift = 1 / (255 * std), -mean / std
    model.register_buffer("image_factor", factor, persistent=False)
    model.register_buffer("image_shift", shift, persistent=False)

    def normalize(module: Any, inputs: tuple[Tensor]) -> tuple[Tensor]:
        images = inputs[0].permute(0, 3, 1, 2) if form == "uint8-nhwc" else inputs[0]
        return ((images.float() * module.image_factor + module.image_shift).to(dtype),)

    model.register_forward_pre_hook(normalize)


def described(image: Preprocessing, form: ImageForm) -> dict[str, Any]:
    """The metadata entry ``input``: what the file takes, what it does itself, what the caller has to do before."""
    size = "x".join(map(str, image.image_size))
    before = [f"resize and centre crop to {size} ({image.interpolation}, crop_pct {image.crop_pct:g})"]
    normalisation = ["scale 0..255 to 0..1", "subtract mean", "divide by std"]
    is_raw = form != "normalized"
    return {
        "form": form,
        "layout": "NHWC" if form == "uint8-nhwc" else "NCHW",
        "range": [0, 255] if is_raw else None,
        "inside": normalisation if is_raw else [],
        "before": before if is_raw else [*before, *normalisation],
    }


def form_of(metadata: Mapping[str, str]) -> ImageForm:
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
    if form not in FORMS:
        raise ConfigError(f"the file takes images of the form {form!r}; this vitslim knows {', '.join(FORMS)}")
    return form


def as_given_to(form: ImageForm, images: Tensor, image: Preprocessing) -> tuple[Tensor, Tensor]:
    """Normalised images as a file of this form takes them, and the normalised images that these really are.

    Bytes hold 256 values, so what goes through them comes back rounded.
    """
    if form == "normalized":
        return images, images
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (image.mean, image.std))
    pixels = ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    normalized = (pixels.float() / 255 - mean) / std
    return (pixels.permute(0, 2, 3, 1).contiguous() if form == "uint8-nhwc" else pixels), normalized
