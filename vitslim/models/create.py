"""Creating a dense model by its timm name: with timm's weights, those of a file, or random ones."""

import warnings
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

from vitslim.errors import CheckpointError, ConfigError, VitslimWarning
from vitslim.models.architecture_in_file import PATCHES, is_readable, misfit, options_for
from vitslim.models.base_model import BaseModel, remember_base
from vitslim.models.families import ADAPTERS
from vitslim.models.hub import HUB, prepare_fetch, unfetchable
from vitslim.models.image_input import assume_preprocessing_
from vitslim.models.weights_file import read_weights
from vitslim.names import ALIASES, BUILTIN, unknown_model
from vitslim.shapes import AnyPath

BUILTIN_CLASSES = 200
MOST_BLOCKS = 1000  # timm's deepest ViT has 64

# What the constructors of timm and torch raise for options that they were not meant to get.
BUILD_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError),
)

_BUILTIN_WEIGHTS = "fractal_vit.safetensors"
_BUILTIN_ARCHITECTURE = "vit_tiny_patch16_224"
_BUILTIN_OPTIONS: dict[str, Any] = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "num_heads": 4}
# They would pass by the checks on files, and be asked for again by whoever builds the base of a saved model.
_SOURCE_OPTIONS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")


def resolve_name(name: str) -> str:
    """The full timm name behind an alias; other names come back as they are.

    Raises:
        ConfigError: neither an alias, nor a timm model, nor a hub id.
    """
    if name in ALIASES:
        return ALIASES[name]
    if name == BUILTIN or name.startswith((*HUB, "local-dir:")):
        return name
    architecture = name.split(".", 1)[0]
    if not timm.is_model(architecture) and not (ADAPTERS.names() and timm.is_model(architecture)):  # of other packages
        raise unknown_model(name, timm.list_models())
    if name != architecture and name not in (listed := timm.list_pretrained(f"{architecture}.*")):
        tags = ", ".join(known.split(".", 1)[1] for known in listed)
        raise ConfigError(f"model {architecture!r} has no weights {name!r}; timm lists the tags {tags or '-'}")
    return name


def create_model(
    name: str,
    *,
    pretrained: bool = True,
    weights: AnyPath | None = None,
    img_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    **options: Any,
) -> nn.Module:
    """The dense model of a name, in eval mode; see ``vitslim.open_model`` for the arguments and errors."""
    resolved = resolve_name(name)
    if asked := [option for option in _SOURCE_OPTIONS if option in options]:
        raise ConfigError(
            f"{resolved}: {', '.join(asked)} is not taken; weights come in through weights= (--weights FILE)"
        )
    given = options if img_size is None else {**options, "img_size": img_size}
    is_builtin = resolved == BUILTIN
    architecture, usual = (_BUILTIN_ARCHITECTURE, _BUILTIN_OPTIONS) if is_builtin else (resolved, {})
    if weights is not None:
        model, given = _create_with_file(architecture, Path(weights), num_classes, given, usual)
        assume_preprocessing_(model)
    elif is_builtin and pretrained:
        with resources.as_file(resources.files("vitslim") / "assets" / _BUILTIN_WEIGHTS) as path:
            model, _ = _create_with_file(architecture, path, num_classes, given, usual)
    else:
        classes = BUILTIN_CLASSES if is_builtin and num_classes is None else num_classes
        counted = {} if classes is None else {"num_classes": classes}
        model = _create(architecture, pretrained, {**usual, **given, **counted})
    base = BaseModel(architecture=resolved, options={**given, "num_classes": cast(Any, model).num_classes})
    return remember_base((model.float() if is_builtin else model).eval(), base)


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    depth = options.get("depth")
    if isinstance(depth, int) and depth > MOST_BLOCKS:
        raise ConfigError(f"{name} cannot be built with depth={depth}: wanted 1 to {MOST_BLOCKS} blocks")
    if pretrained and options and timm.is_model(name.split(".", 1)[0]):
        # An error of the options shows before anything is fetched.
        with torch.device("meta"):
            _create(name, False, options)
    try:
        prepare_fetch(name, pretrained=pretrained)
        return _with_patches(name, timm.create_model(name, pretrained=pretrained, **options))
    except BUILD_ERRORS as error:
        if not pretrained or not isinstance(error, OSError | RuntimeError | ValueError):
            raise _unbuildable(name, options, error) from error
        raise unfetchable(name, _first_line(error)) from error


def _with_patches(name: str, model: nn.Module) -> nn.Module:
    embed = cast(Any, getattr(model, "patch_embed", None))
    if 0 in (getattr(embed, "grid_size", None) or ()):
        raise ConfigError(
            f"{name}: an image of {embed.img_size} px holds no patch of {embed.patch_size}; choose a larger img_size "
            "(--img-size) or a smaller patch_size"
        )
    return model


def _unbuildable(name: str, options: dict[str, Any], error: Exception) -> ConfigError:
    if "unexpected keyword argument" in str(error):
        return ConfigError(f"{name}: {error}; options are those of timm's {name.split('.', 1)[0]}")
    return ConfigError(f"{name} cannot be built with {options}: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _create_with_file(
    name: str, path: Path, num_classes: int | None, given: dict[str, Any], usual: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """The model, and the options that it was built with; ``usual`` are those of the name where timm has others."""
    state = read_weights(path)
    in_file = None if (head := state.get("head.weight")) is None else len(head)
    # timm loads strictly only as many classes as it expects, so the file comes first, the classes that were asked for
    # after it; otherwise weights of another model would be skipped in silence.
    built = 0 if in_file is None else in_file
    options = {**usual, **given}
    with torch.device("meta"):
        named = _create(name, False, dict(usual))
        if is_readable(named, state):
            inferred = options_for(name, named, state, given, path)
            _warn_of_inferred(name, named, inferred, given, path)
            options |= inferred
            asked, held = given.get("patch_size"), state[PATCHES].shape[-1]
            if asked not in (None, held):
                text = f"the patches of {path} are resampled from {held} to {asked} pixels, as asked"
                warnings.warn(text, VitslimWarning, stacklevel=3)
        # An error of the options shows here, so that what fails below is the file.
        shaped = _create(name, False, {**options, "num_classes": built})
    config: dict[str, Any] = {"state_dict": state, "num_classes": built}
    if (stem := state.get(PATCHES)) is not None and stem.ndim == 4:
        config["input_size"] = (stem.shape[1], *shaped.pretrained_cfg["input_size"][1:])  # pyright: ignore
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=config, num_classes=built, **options)
    except BUILD_ERRORS as error:
        # What torch says of names and shapes lists them all.
        is_misfit = "loading state_dict" in str(error)
        reason = misfit(shaped, state) if is_misfit else _first_line(error)
        raise CheckpointError(f"{path} does not hold weights of {name}: {reason}") from error
    # timm notes the overlay on the model, which would keep the file's tensors alive beside the parameters.
    for kept in ("pretrained_cfg", "default_cfg"):
        setattr(model, kept, {key: value for key, value in getattr(model, kept).items() if key != "state_dict"})
    asked = num_classes if num_classes is not None else (in_file or _default_classes(name))
    if asked != built:
        cast(Any, model).reset_classifier(asked)
    return model, options


def _warn_of_inferred(name: str, named: nn.Module, inferred: dict[str, Any], given: dict[str, Any], path: Path) -> None:
    if not inferred:
        return
    read = ", ".join(f"{option} {value}" for option, value in inferred.items())
    heads = cast(Any, named).blocks[0].attn.num_heads
    kept = "" if "num_heads" in {*inferred, *given} else f"; num_heads {heads} as the name has, since no file says it"
    warnings.warn(f"{name} with {read}, as {path} has them{kept}", VitslimWarning, stacklevel=4)


def _default_classes(name: str) -> int:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return 0 if config is None else int(config.num_classes)
