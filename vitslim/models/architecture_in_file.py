"""What a weights file says of the plain ViT that it belongs to: depth, width, patches, image size."""

import re
from collections.abc import Mapping
from typing import Any

from timm.layers import PatchEmbed
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitslim.errors import CheckpointError, ConfigError

_PLAIN = (VisionTransformer, VisionTransformerDistilled)
_FAMILIES = (*_PLAIN, Eva, Beit)
PATCHES = "patch_embed.proj.weight"

# Options of timm's plain ViT that a tensor of this name, present or absent, decides.
_DECIDED_BY_PRESENCE = {
    "qkv_bias": "blocks.0.attn.qkv.bias",
    "proj_bias": "blocks.0.attn.proj.bias",
    "qk_norm": "blocks.0.attn.q_norm.weight",
    "class_token": "cls_token",
    "pre_norm": "norm_pre.weight",
}
_FIXED_IN_DISTILLED = ("class_token", "reg_tokens")

# What the weights are resampled to where another value is asked for than the file has.
_ASKED_LATER = ("img_size", "patch_size")


def is_readable(model: nn.Module, state: Mapping[str, Tensor]) -> bool:
    """Whether a file's tensors have timm's names of a family whose options can be read off them."""
    # DINOv2's and masked autoencoders' own names are like timm's, but timm rewrites what is in them.
    return (
        type(model) in _FAMILIES
        and type(getattr(model, "patch_embed", None)) is PatchEmbed
        and "mask_token" not in state
        and PATCHES in state
        and state[PATCHES].ndim == 4
        and state[PATCHES].shape[2] == state[PATCHES].shape[3]
        and "blocks.0.norm2.weight" in state
    )


def options_for(
    name: str, named: nn.Module, state: Mapping[str, Tensor], given: Mapping[str, Any], path: object
) -> dict[str, Any]:
    """The options by which the file's model differs from the named one, without those that were given.

    Args:
        name: of the model, for messages.
        named: the model of that name, of which nothing but the settings is read.
        given: options that the user gave.
        path: of the file, for messages.

    Raises:
        CheckpointError: a given option contradicts the file.
        ConfigError: the number of heads is not in the file and was not given.
    """
    found, usual = _in_file(named, state), _in_model(named)
    # timm makes weights of RGB images into those of other channels.
    adapted = (*_ASKED_LATER, "in_chans") if found["in_chans"] == 3 else _ASKED_LATER
    wrong = [
        option
        for option in found
        if option in given and option not in adapted and _differs(option, given[option], found[option])
    ]
    if wrong:
        asked, held = (", ".join(f"{option}={row[option]}" for option in wrong) for row in (given, found))
        raise CheckpointError(
            f"{path} does not hold weights of {name} with {asked}: your file has {held}, with {found['depth']} blocks "
            f"of width {found['embed_dim']}. What is left out (--model-arg) is read from the file"
        )
    differing = {option: value for option, value in found.items() if _differs(option, usual.get(option, value), value)}
    if "num_heads" not in {*given, *found} and found["embed_dim"] != usual["embed_dim"]:
        raise ConfigError(_heads_wanted(found["embed_dim"], path))
    return {option: value for option, value in differing.items() if option not in given}


def misfit(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """How the tensors of a file differ from those of a model."""
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    missing = [key for key in own if key not in state]
    unknown = [key for key in state if key not in own]
    other = [key for key in own if key in state and tuple(state[key].shape) != own[key]]
    parts = [
        f"{len(keys)} of {whose} tensors {what}, first {keys[0]!r}"
        for keys, whose, what in (
            (missing, "the model's", "are not in the file"),
            (unknown, "the file's", "are not in the model"),
        )
        if keys
    ]
    if other:
        first = other[0]
        parts.append(f"{first!r} is {_by(state[first].shape)} in the file and {_by(own[first])} in the model")
    return "; ".join(parts)


def _in_file(named: Any, state: Mapping[str, Tensor]) -> dict[str, Any]:
    width, channels, height, _ = state[PATCHES].shape
    found: dict[str, Any] = {
        "depth": 1 + max(int(at[1]) for key in state if (at := re.match(r"blocks\.(\d+)\.", key))),
        "embed_dim": width,
        "patch_size": height,
        "in_chans": channels,
    }
    if "blocks.0.mlp.fc2.weight" in state:
        found["mlp_ratio"] = _ratio(state["blocks.0.mlp.fc2.weight"].shape[1], width)
    if type(named) in _PLAIN:
        found |= {option: key in state for option, key in _DECIDED_BY_PRESENCE.items()}
        found["init_values"] = 1e-5 if {"blocks.0.ls1.gamma", "blocks.0.gamma_1"} & set(state) else None
        found["reg_tokens"] = state["reg_token"].shape[1] if "reg_token" in state else 0
        if not found["class_token"] and "attn_pool.latent" not in state:
            found["global_pool"] = "avg"  # timm's plain ViT reads the class token or this
        elif "fc_norm.weight" in state and "norm.weight" not in state:
            found["global_pool"] = "avg"
    if type(named) is VisionTransformerDistilled:
        found = {option: value for option, value in found.items() if option not in _FIXED_IN_DISTILLED}
    if (head_width := state.get("blocks.0.attn.q_norm.weight")) is not None and len(head_width) < width:
        found["num_heads"] = width // len(head_width)
    if (table := state.get("blocks.0.attn.relative_position_bias_table")) is not None:
        found["num_heads"] = table.shape[1]
    if (side := _grid_side(named, state, found)) is not None:
        found["img_size"] = side * height
    return found


def _in_model(model: Any) -> dict[str, Any]:
    block = model.blocks[0]
    own = {key: value for key, value in model.state_dict().items() if key != "pos_embed"}
    settings = _in_file(model, own)
    settings.setdefault("global_pool", model.global_pool)
    height, width = model.patch_embed.img_size
    return {
        "class_token": True,
        "reg_tokens": 0,
        **settings,
        "num_heads": block.attn.num_heads,
        "img_size": height if height == width else (height, width),
    }


def _grid_side(named: Any, state: Mapping[str, Tensor], found: Mapping[str, Any]) -> int | None:
    """Rows of a square grid of patches, from the number of position embeddings."""
    embedded = state.get("pos_embed")
    if embedded is None or embedded.ndim != 3:
        return None
    prefix = named.num_prefix_tokens
    if type(named) is VisionTransformer:
        prefix = int(found["class_token"]) + found["reg_tokens"]
    # Some models give their class and register tokens no position.
    counts = [embedded.shape[1] - prefix, embedded.shape[1]]
    if getattr(named, "no_embed_class", False):
        counts.reverse()
    return next((round(count**0.5) for count in counts if count > 0 and round(count**0.5) ** 2 == count), None)


def _ratio(hidden: int, width: int) -> float | int:
    """The hidden width over the width, such that timm's rounding down finds the hidden width again."""
    if hidden % width == 0:
        return hidden // width
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _differs(option: str, one: Any, other: Any) -> bool:
    if option == "init_values":
        # The start value does not matter once weights are loaded, only that there is one.
        return (one is None) != (other is None)
    if option == "global_pool":
        return one in ("token", "map") and one != other
    if isinstance(one, tuple | list):
        return any(part != other for part in one)
    return one != other


def _heads_wanted(width: int, path: object) -> str:
    fitting = [heads for heads in range(1, width + 1) if width % heads == 0 and 8 <= width // heads <= 128]
    return (
        f"{path} has blocks of width {width}, and no file of weights has the number of heads: give it with "
        f"--model-arg num_heads=N (num_heads=N); usual is width / 64, and of {width} fit "
        f"{', '.join(map(str, fitting or [1]))}"
    )


def _by(shape: Any) -> str:
    return " × ".join(map(str, shape)) or "a number"
