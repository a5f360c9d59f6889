"""The names that users type for models and methods, known before torch is imported."""

import difflib
import re
from collections.abc import Iterable
from importlib.metadata import entry_points

from vitslim.errors import ConfigError

METHOD_NAMES = (
    "depth",
    "mlp",
    "heads",
    "width",
    "resolution",
    "prune",
    "merge",
    "evo_vit",
    "skipat",
    "sparsifiner",
    "sret",
)
"""One name per file of ``vitslim/methods`` that registers a method."""

BUILTIN = "builtin"
"""The small ViT that ships with vitslim, trained on the built-in fractal images."""

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


def did_you_mean(name: str, known: Iterable[str], *, count: int = 1) -> str:
    """``; did you mean 'skipat'?`` where something known is near, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=count)
    return f"; did you mean {' or '.join(repr(match) for match in close)}?" if close else ""


def unknown_model(name: str, architectures: Iterable[str]) -> ConfigError:
    """The error for a name that neither vitslim nor timm knows."""
    near = did_you_mean(name, [*ALIASES, BUILTIN, *architectures], count=3)
    return ConfigError(f"unknown model {name!r}{near} (`vitslim list models` shows all)")


def check_method(name: str) -> str:
    """The name of a method as it is.

    Raises:
        ConfigError: there is no such method; the message names the nearest.
    """
    if name not in METHOD_NAMES and name not in (others := entry_points(group="vitslim.methods").names):
        known = (*METHOD_NAMES, *others)
        hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
        raise ConfigError(f"unknown method {name!r}{hint}")
    return name


def check_device(name: str) -> str:
    """The name of a device as it is, whether or not such a device is there.

    Raises:
        ConfigError: it names none.
    """
    if not re.fullmatch(r"(cpu|cuda)(:\d{1,2})?", name):
        raise ConfigError(f"device {name!r} is not one; wanted cpu, cuda or cuda:N")
    return name
