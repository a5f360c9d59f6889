"""Opening a model: whatever names or holds one, as a module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitslim import checkpoint
from vitslim.arguments import checked
from vitslim.errors import ConfigError
from vitslim.models import create_model, set_preprocessing_
from vitslim.models.hub import HUB, hub_description
from vitslim.shapes import AnyPath, AtLeastOne, NoneOrMore

ModelLike = nn.Module | AnyPath


@checked
def open_model(
    source: ModelLike,
    *,
    pretrained: bool = True,
    weights: AnyPath | None = None,
    img_size: AtLeastOne | tuple[AtLeastOne, AtLeastOne] | None = None,
    num_classes: NoneOrMore | None = None,
    stated: Mapping[str, Any] | None = None,
    **options: Any,
) -> nn.Module:
    """Open a model, dense or converted, in eval mode.

    A model of one's own need not have a name: ``vitslim.save(model, folder)`` saves any timm ViT, however it was
    built, and the folder is taken wherever a model is.

    Args:
        source: a timm name with or without a tag, an alias (``deit_base``), an ``hf-hub:`` id of timm or of a saved
            model, ``builtin``, a folder that ``vitslim.save`` wrote or its model.safetensors alone; a module comes
            back as it is.
        pretrained: with trained weights, fetched for a name and read for a folder; ``False`` gives random ones.
        weights: a local file of a named model's weights instead (safetensors, or a torch file read with
            ``weights_only=True``). Depth, width, patch and image size and the number of classes are read from the file
            where they are not given, and what differs from the named model is said in a warning; heads cannot be read
            from it. Position embeddings are resized to ``img_size``.
        img_size: input size of a named model in pixels, one number or (height, width).
        num_classes: outputs of a named model's classifier; 0 removes it, another number than the weights have starts
            it anew.
        stated: how the images were prepared in training, which no weights say: ``mean``, ``std``,
            ``interpolation``, ``crop_pct``, as ``vitslim.models.set_preprocessing_`` takes them.
        options: further arguments of a named timm model.

    Raises:
        ConfigError: unknown name or option, options for a model that has been built, or weights that cannot be fetched.
        CheckpointError: a file is missing, unreadable or of another model than was asked for.
    """
    shape: dict[str, Any] = {"weights": weights, "img_size": img_size, "num_classes": num_classes, **options}
    given = [name for name, value in shape.items() if value is not None]
    if is_named(source):
        model = create_model(str(source), pretrained=pretrained, **shape)
    elif given:
        what = "this module is built and" if isinstance(source, nn.Module) else f"{source} is a saved model, which"
        raise ConfigError(f"{what} knows its own {', '.join(given)}; leave them out")
    elif isinstance(source, nn.Module):
        model = source
    else:
        model = checkpoint.load(source) if pretrained else checkpoint.build(checkpoint.load_config(source)).eval()
    return set_preprocessing_(model, **(stated or {}))


def open_shape(source: ModelLike, **given: Any) -> nn.Module:
    """``open_model`` without fetching a weight: what is not on this machine is built on the meta device.

    A file decides the number of classes and a saved model all of its shape, so these are opened as they are.
    """
    is_here = not is_named(source) or given.get("weights") is not None
    wanted: dict[str, Any] = given if is_here else {**given, "pretrained": False}
    with torch.device("cpu" if is_here else "meta"):
        return open_model(source, **wanted)


def is_named(source: ModelLike) -> bool:
    """Whether a model is given by a name that timm builds, and so takes options.

    Raises:
        ConfigError: it is a path to something else.
    """
    if isinstance(source, nn.Module) or checkpoint.is_saved_model(source):
        return False
    if isinstance(source, str) and source.startswith(HUB):
        described = hub_description(source)
        return not (isinstance(described, dict) and described.get("format") == checkpoint.FORMAT)
    if isinstance(source, Path) or ("/" in source and ":" not in source) or Path(source).is_dir():
        raise ConfigError(f"{source} is neither a folder nor a file that vitslim wrote; wanted one, or a timm name")
    return True


def dense_baseline(model: nn.Module) -> nn.Module:
    """The dense model that a converted one came from, at the same size; weights are random.

    Raises:
        ConfigError: the model does not know its base.
    """
    described = checkpoint.describe_saved(model)
    return checkpoint.build(described.model_copy(update={"conversions": [], "plan": None})).eval()
