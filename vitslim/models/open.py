"""Opening a dense model by timm name, alias, hub id or the built-in one."""

import warnings
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

from vitslim.arguments import checked
from vitslim.errors import CheckpointError, ConfigError, VitslimWarning
from vitslim.models.architecture_in_file import PATCHES, is_readable, misfit, options_for
from vitslim.models.base import BaseModel, remember_base
from vitslim.models.hub import prepare_fetch, unfetchable
from vitslim.models.image_input import assume_preprocessing_
from vitslim.models.weights_file import read_weights
from vitslim.names import ALIASES, BUILTIN, unknown_model
from vitslim.shapes import AnyPath, AtLeastOne, NoneOrMore

_BUILTIN_WEIGHTS = "fractal_vit.safetensors"
BUILTIN_CLASSES = 200
BUILTIN_ARCHITECTURE = "vit_tiny_patch16_224"
BUILTIN_OPTIONS: dict[str, Any] = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "num_heads": 4}

# What the constructors of timm and torch raise for options that they were not meant to get.
MOST_BLOCKS = 1000  # timm's deepest ViT has 64

BUILD_FAULTS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError),
)

_SOURCE_OPTIONS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay")


def resolve_name(name: str) -> str:
    """The full timm name behind an alias; other names come back as they are.

    Raises:
        ConfigError: neither an alias, nor a timm model, nor a hub id.
    """
    if name in ALIASES:
        return ALIASES[name]
    if name == BUILTIN or name.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return name
    architecture = name.split(".", 1)[0]
    if not timm.is_model(architecture):
        raise unknown_model(name, timm.list_models())
    if name != architecture and name not in timm.list_pretrained(f"{architecture}.*"):
        tags = [known.split(".", 1)[1] for known in timm.list_pretrained(f"{architecture}.*")]
        raise ConfigError(
            f"model {architecture!r} has no weights {name!r}; timm lists the tags {', '.join(tags) or '-'}"
        )
    return name


@checked
def open_model(
    name: str,
    *,
    pretrained: bool = True,
    weights: AnyPath | None = None,
    img_size: AtLeastOne | tuple[AtLeastOne, AtLeastOne] | None = None,
    num_classes: NoneOrMore | None = None,
    **options: Any,
) -> nn.Module:
    """Open a dense model, in eval mode.

    A model of one's own need not come this way: ``vitslim.save(model, folder)`` saves any timm ViT, however it was
    built, and the folder's name is taken wherever a model is.

    Args:
        name: timm name with or without a tag, an alias (``deit_base``), an ``hf-hub:`` id or ``builtin``.
        pretrained: fetch timm's weights; ``False`` gives random ones.
        weights: a local file of weights instead (safetensors, or a torch file read with ``weights_only=True``).
            Depth, width, patch and image size and the number of classes are read from the file where they are not
            given, and what differs from the named model is said in a warning; heads cannot be read from it. Position
            embeddings are resized to ``img_size``. No file tells how images were prepared in training:
            ``vitslim.models.set_preprocessing_`` states it.
        img_size: input size in pixels, one number or (height, width).
        num_classes: outputs of the classifier; 0 removes it, another number than the weights have starts it anew.
        options: further arguments of the timm model.

    Raises:
        ConfigError: unknown name or option, or weights that cannot be fetched.
        CheckpointError: the weights file is missing, unreadable or of another model than was asked for.
    """
    resolved = resolve_name(name)
    _refuse_other_sources(resolved, options)
    options = dict(options)
    if img_size is not None:
        options["img_size"] = img_size
    if resolved == BUILTIN:
        return _open_builtin(pretrained, weights, num_classes, options)
    base_options = options if num_classes is None else {**options, "num_classes": num_classes}
    if weights is not None:
        model, options = _open_with_file(resolved, Path(weights), num_classes, options)
        assume_preprocessing_(model)
    else:
        model = _create(resolved, pretrained, base_options)
    base = BaseModel(architecture=resolved, options={**options, "num_classes": cast(Any, model).num_classes})
    return remember_base(model.eval(), base)


def _refuse_other_sources(name: str, options: dict[str, Any]) -> None:
    # They would pass by the checks on files, and be asked for again by whoever builds the base of a saved model.
    asked = [option for option in _SOURCE_OPTIONS if option in options]
    if asked:
        raise ConfigError(f"{name}: {', '.join(asked)} is not taken; weights come in through weights= (--weights FILE)")


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    depth = options.get("depth")
    if isinstance(depth, int) and depth > MOST_BLOCKS:
        raise ConfigError(f"{name} cannot be built with depth={depth}: wanted 1 to {MOST_BLOCKS} blocks")
    if pretrained and options and timm.is_model(name.split(".", 1)[0]):
        # A fault of the options shows before anything is fetched.
        with torch.device("meta"):
            _create(name, False, options)
    try:
        prepare_fetch(name, pretrained=pretrained)
        return _with_patches(name, timm.create_model(name, pretrained=pretrained, **options))
    except BUILD_FAULTS as error:
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


def _open_with_file(
    name: str, path: Path, num_classes: int | None, given: dict[str, Any], usual: Mapping[str, Any] | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """The model, and the options that it was built with; ``usual`` are those of the name where timm has others."""
    state = read_weights(path)
    in_file = _classes_in(state)
    # timm loads strictly only as many classes as it expects, so the file comes first, the classes that were asked for
    # after it; otherwise weights of another model would be skipped in silence.
    built = 0 if in_file is None else in_file
    options = {**(usual or {}), **given}
    with torch.device("meta"):
        named = _create(name, False, dict(usual or {}))
        if is_readable(named, state):
            inferred = options_for(name, named, state, given, path)
            _tell_of(name, named, inferred, given, path)
            options |= inferred
            asked, held = given.get("patch_size"), state[PATCHES].shape[-1]
            if asked not in (None, held):
                told = f"the patches of {path} are resampled from {held} to {asked} pixels, as asked"
                warnings.warn(told, VitslimWarning, stacklevel=3)
        # A fault of the options shows here, so that what fails below is the file.
        shaped = _create(name, False, {**options, "num_classes": built})
    config: dict[str, Any] = {"state_dict": state, "num_classes": built}
    if (stem := state.get(PATCHES)) is not None and stem.ndim == 4:
        config["input_size"] = (stem.shape[1], *shaped.pretrained_cfg["input_size"][1:])  # pyright: ignore
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=config, num_classes=built, **options)
    except BUILD_FAULTS as error:
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


def _tell_of(name: str, named: nn.Module, inferred: dict[str, Any], given: dict[str, Any], path: Path) -> None:
    if not inferred:
        return
    told = ", ".join(f"{option} {value}" for option, value in inferred.items())
    heads = cast(Any, named).blocks[0].attn.num_heads
    kept = "" if "num_heads" in {*inferred, *given} else f"; num_heads {heads} as the name says, since no file tells it"
    warnings.warn(f"{name} with {told}, as {path} has them{kept}", VitslimWarning, stacklevel=4)


def _default_classes(name: str) -> int:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return 0 if config is None else int(config.num_classes)


def _classes_in(state: dict[str, torch.Tensor]) -> int | None:
    weight = state.get("head.weight")
    return None if weight is None else int(weight.shape[0])


def _open_builtin(
    pretrained: bool, weights: str | Path | None, num_classes: int | None, options: dict[str, Any]
) -> nn.Module:
    if weights is None and not pretrained:
        count = BUILTIN_CLASSES if num_classes is None else num_classes
        model = _create(BUILTIN_ARCHITECTURE, False, {**BUILTIN_OPTIONS, **options, "num_classes": count})
    elif weights is None:
        with resources.as_file(resources.files("vitslim") / "assets" / _BUILTIN_WEIGHTS) as path:
            model, _ = _open_with_file(BUILTIN_ARCHITECTURE, path, num_classes, options, BUILTIN_OPTIONS)
    else:
        model, options = _open_with_file(BUILTIN_ARCHITECTURE, Path(weights), num_classes, options, BUILTIN_OPTIONS)
        assume_preprocessing_(model)
    base = BaseModel(architecture=BUILTIN, options={**options, "num_classes": cast(Any, model).num_classes})
    return remember_base(model.float().eval(), base)
