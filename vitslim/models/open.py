"""Opening a dense model by timm name, alias, hub id or the built-in one."""

import difflib
from importlib import resources
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

from vitslim.arguments import checked
from vitslim.errors import CheckpointError, ConfigError
from vitslim.models.base import BaseModel, remember_base
from vitslim.models.weights_file import read_weights
from vitslim.shapes import AnyPath, AtLeastOne, NoneOrMore

ALIASES: dict[str, str] = {
    "deit_tiny": "deit_tiny_patch16_224.fb_in1k",
    "deit_small": "deit_small_patch16_224.fb_in1k",
    "deit_base": "deit_base_patch16_224.fb_in1k",
    "deit_base_384": "deit_base_patch16_384.fb_in1k",
    "deit3_small": "deit3_small_patch16_224.fb_in22k_ft_in1k",
    "deit3_base": "deit3_base_patch16_224.fb_in22k_ft_in1k",
    "vit_tiny": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit_small": "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit_base": "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "vit_large": "vit_large_patch16_224.augreg_in21k_ft_in1k",
    "dinov2_small": "vit_small_patch14_dinov2.lvd142m",
    "dinov2_base": "vit_base_patch14_dinov2.lvd142m",
    "dinov2_large": "vit_large_patch14_dinov2.lvd142m",
    "dinov2_small_reg": "vit_small_patch14_reg4_dinov2.lvd142m",
    "dinov2_base_reg": "vit_base_patch14_reg4_dinov2.lvd142m",
    "dinov3_small": "vit_small_patch16_dinov3.lvd1689m",
    "dinov3_base": "vit_base_patch16_dinov3.lvd1689m",
    "dinov3_large": "vit_large_patch16_dinov3.lvd1689m",
    "eva02_tiny": "eva02_tiny_patch14_336.mim_in22k_ft_in1k",
    "eva02_small": "eva02_small_patch14_336.mim_in22k_ft_in1k",
    "eva02_base": "eva02_base_patch14_448.mim_in22k_ft_in22k_in1k",
    "beit_base": "beit_base_patch16_224.in22k_ft_in22k_in1k",
    "beitv2_base": "beitv2_base_patch16_224.in1k_ft_in22k_in1k",
    "clip_base": "vit_base_patch16_clip_224.openai",
    "siglip_base": "vit_base_patch16_siglip_224.webli",
    "siglip2_base": "vit_base_patch16_siglip_224.v2_webli",
}
"""Short names, one variant of pretrained weights each."""

BUILTIN = "builtin"
"""The small ViT that ships with vitslim, trained on the built-in fractal images."""

_BUILTIN_WEIGHTS = "fractal_vit.safetensors"
BUILTIN_CLASSES = 200
BUILTIN_ARCHITECTURE = "vit_tiny_patch16_224"
BUILTIN_OPTIONS: dict[str, Any] = {"img_size": 64, "patch_size": 8, "embed_dim": 128, "num_heads": 4}

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
        close = difflib.get_close_matches(name, [*ALIASES, BUILTIN, *timm.list_models()], n=3, cutoff=0.6)
        hint = f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
        raise ConfigError(f"unknown model {name!r}{hint} (`vitslim list models` shows all)")
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

    Args:
        name: timm name with or without a tag, an alias (``deit_base``), an ``hf-hub:`` id or ``builtin``.
        pretrained: fetch timm's weights; ``False`` gives random ones.
        weights: a local file of weights instead (safetensors, or a torch file read with ``weights_only=True``).
            Position embeddings are resized to ``img_size``, the number of classes is read from the file.
        img_size: input size in pixels, one number or (height, width).
        num_classes: outputs of the classifier; 0 removes it, another number than the weights have starts it anew.
        options: further arguments of the timm model.

    Raises:
        ConfigError: unknown name or option, or weights that cannot be fetched.
        CheckpointError: the weights file is missing, unreadable or of another model.
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
        model = _open_with_file(resolved, Path(weights), num_classes, options)
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
    try:
        return timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:
        raise _unknown_option(name, error) from error
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        if not pretrained:
            raise ConfigError(f"{name} cannot be built with {options}: {error}") from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"the pretrained weights of {name} could not be fetched ({reason}). Without network: pass a local file "
            "with --weights FILE (weights=), or fill the hub's offline cache once (HF_HOME, then HF_HUB_OFFLINE=1), "
            "or start untrained with --no-pretrained (pretrained=False)"
        ) from error


def _open_with_file(name: str, path: Path, num_classes: int | None, options: dict[str, Any]) -> nn.Module:
    state = read_weights(path)
    in_file = _classes_in(state)
    # timm loads strictly only as many classes as it expects, so the file comes first, the classes that were asked for
    # after it; otherwise weights of another model would be skipped in silence.
    built = 0 if in_file is None else in_file
    overlay: dict[str, Any] = {"state_dict": state, "num_classes": built}
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=built, **options)
    except TypeError as error:
        raise _unknown_option(name, error) from error
    except (RuntimeError, KeyError, ValueError, AssertionError) as error:
        reason = "; ".join(line.strip() for line in str(error).splitlines()[:3])
        raise CheckpointError(f"{path} does not hold weights of {name}: {reason}") from error
    # timm notes the overlay on the model, which would keep the file's tensors alive beside the parameters.
    for config in ("pretrained_cfg", "default_cfg"):
        setattr(model, config, {key: value for key, value in getattr(model, config).items() if key != "state_dict"})
    asked = num_classes if num_classes is not None else (in_file or _default_classes(name))
    if asked != built:
        cast(Any, model).reset_classifier(asked)
    return model


def _default_classes(name: str) -> int:
    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return 0 if config is None else int(config.num_classes)


def _unknown_option(name: str, error: TypeError) -> ConfigError:
    return ConfigError(f"{name}: {error}; options are those of timm's {name.split('.', 1)[0]}")


def _classes_in(state: dict[str, torch.Tensor]) -> int | None:
    weight = state.get("head.weight")
    return None if weight is None else int(weight.shape[0])


def _open_builtin(
    pretrained: bool, weights: str | Path | None, num_classes: int | None, options: dict[str, Any]
) -> nn.Module:
    allowed = {**BUILTIN_OPTIONS, **options}
    if weights is None and pretrained:
        with resources.as_file(resources.files("vitslim") / "assets" / _BUILTIN_WEIGHTS) as path:
            model = _open_with_file(BUILTIN_ARCHITECTURE, path, num_classes, allowed)
    elif weights is not None:
        model = _open_with_file(BUILTIN_ARCHITECTURE, Path(weights), num_classes, allowed)
    else:
        count = BUILTIN_CLASSES if num_classes is None else num_classes
        model = _create(BUILTIN_ARCHITECTURE, False, {**allowed, "num_classes": count})
    base = BaseModel(architecture=BUILTIN, options={**options, "num_classes": cast(Any, model).num_classes})
    return remember_base(model.float().eval(), base)
