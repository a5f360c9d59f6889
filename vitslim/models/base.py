"""How a dense model can be built again: the name and options that a saved conversion starts from."""

import json
from collections.abc import Iterator
from typing import Any, cast

import timm
import torch
from timm.layers import GluMlp, SwiGLU
from timm.layers.pos_embed_sincos import (
    RotaryEmbeddingCat,
    RotaryEmbeddingDinoV3,
    RotaryEmbeddingMixed,
    RotaryEmbeddingMRope,
)
from timm.models import beit, deit, eva, get_model_args, vision_transformer
from torch import nn

from vitslim.errors import CheckpointError, VitslimError
from vitslim.models.base_model import BaseModel, remembered_base
from vitslim.models.create import create_model

# What leads from a description to the network or to other files.
_OUTWARD = ("name", "pretrained", "weights", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def describe(model: nn.Module) -> BaseModel | None:
    """How to build the dense model again, at the size and number of classes that it has now.

    A model that ``create_model`` built remembers, one that ``timm.create_model`` built keeps its arguments, and for one
    that was built by hand the options are read off the module. Each answer is believed only if building with it gives
    the same parameters and the same settings in every layer.

    Returns:
        ``None`` when the module cannot be described; saving then asks for ``base=``.
    """
    return next((base for base in _candidates(model) if _builds_the_same(base, model)), None)


def refresh(base: BaseModel, model: nn.Module) -> BaseModel:
    """``base`` with the settings that may have changed since: classes, pooling, image and patch size."""
    options = {**base.options, **get_model_args(model), **_current(model)}
    return BaseModel(architecture=base.architecture, options={name: _plain(value) for name, value in options.items()})


def build_base(base: BaseModel) -> nn.Module:
    """Build the dense model that ``base`` describes, with random weights; nothing is read or fetched for it.

    Raises:
        CheckpointError: the description leads outside, or names an unknown class.
        ConfigError: timm does not build it.
    """
    outward = [name for name in _OUTWARD if name in base.options]
    if outward or not _is_local(base):
        raise CheckpointError(
            f"base model {base.architecture!r} leads to the network or to other files"
            f"{f' by its options {outward}' if outward else ''}; wanted the name of an architecture and its own options"
        )
    # JSON knows lists only, timm's layers compare with tuples.
    options: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in base.options.items()
    }
    if base.architecture.startswith(":"):
        known = {kind.__name__: kind for kind in _OPTIONS}
        kind = known.get(base.architecture[1:])
        if kind is None:
            raise CheckpointError(f"base model class {base.architecture[1:]!r} is not one of {', '.join(known)}")
        return kind(**options)
    return create_model(base.architecture, pretrained=False, **options)


def _is_local(base: BaseModel) -> bool:
    return ":" not in base.architecture[1:]  # hf-hub:, local-dir:


def _current(model: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"num_classes": int(model.num_classes), "global_pool": str(model.global_pool)}
    size = getattr(model.patch_embed, "img_size", None)
    if size is not None:
        options["img_size"] = [int(size[0]), int(size[1])]
    return options


def _candidates(model: nn.Module) -> Iterator[BaseModel]:
    remembered = remembered_base(model)
    if remembered is not None:
        yield refresh(remembered, model)
    if type(model) not in _OPTIONS:
        return
    try:
        inferred = _infer(model)
    except (AttributeError, TypeError):
        # Layers of the user's own, whose settings have other names.
        return
    if remembered is not None and _is_local(remembered):
        architecture = remembered.architecture
    else:
        architecture = _architecture(model)
    if architecture is not None:
        # timm's record leaves out the drop rates, and prune_intermediate_layers does not enter the depth.
        rates = {name: value for name, value in inferred.items() if name.endswith("_rate")}
        yield refresh(BaseModel(architecture=architecture, options=rates), model)
        yield refresh(BaseModel(architecture=architecture, options={**rates, "depth": inferred["depth"]}), model)
    yield BaseModel(architecture=f":{type(model).__name__}", options=inferred)


def _architecture(model: nn.Module) -> str | None:
    """The timm name that the model was created by, with the tag of its weights where timm lists it."""
    config = cast(Any, getattr(model, "pretrained_cfg", None) or {})
    architecture, tag = config.get("architecture"), config.get("tag")
    if not architecture:
        return None
    # The tag decides the normalisation of the images.
    tagged = f"{architecture}.{tag}"
    return tagged if tag and timm.is_model_pretrained(tagged) else str(architecture)


def _plain(value: Any) -> Any:
    return list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value


def _infer(model: Any) -> dict[str, Any]:
    """Constructor arguments read off a module; ``_builds_the_same`` decides whether they are right."""
    block = model.blocks[0]
    attn = block.attn
    rates = [float(getattr(one.drop_path1, "drop_prob", 0.0) or 0.0) for one in model.blocks]
    read: dict[str, Any] = {
        **_current(model),
        "patch_size": list(model.patch_embed.patch_size),
        "in_chans": int(model.in_chans),
        "embed_dim": int(model.embed_dim),
        "depth": len(model.blocks),
        "num_heads": int(attn.num_heads),
        "mlp_ratio": _mlp_ratio(block.mlp),
        "qkv_bias": _has_qkv_bias(attn),
        "init_values": _layer_scale(block),
        "drop_path_rate": rates[-1],
        "drop_rate": float(model.head_drop.p),
        "pos_drop_rate": float(getattr(model.pos_drop, "p", 0.0)),
        "attn_drop_rate": float(attn.attn_drop.p),
        "proj_drop_rate": float(attn.proj_drop.p),
    }
    read.update(_OPTIONS[type(model)](model))
    return read


def _mlp_ratio(mlp: Any) -> float:
    """The hidden width over d, such that timm's rounding down finds the hidden width again."""
    first = mlp.fc1 if hasattr(mlp, "fc1") else mlp.fc1_x
    hidden, width = int(first.out_features), int(first.in_features)
    if type(mlp) is GluMlp:
        hidden //= 2
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _has_qkv_bias(attn: Any) -> bool:
    if getattr(attn, "q_bias", None) is not None:
        return True
    return (attn.q_proj if attn.qkv is None else attn.qkv).bias is not None


def _layer_scale(block: Any) -> float | None:
    # The start value does not matter once weights are loaded, only that there is one.
    present = getattr(block, "gamma_1", None) is not None or hasattr(getattr(block, "ls1", None), "gamma")
    return 1e-5 if present else None


def _vit_options(model: Any) -> dict[str, Any]:
    block = model.blocks[0]
    return {
        "qk_norm": not isinstance(block.attn.q_norm, nn.Identity),
        "scale_attn_norm": not isinstance(block.attn.norm, nn.Identity),
        "scale_mlp_norm": not isinstance(block.mlp.norm, nn.Identity),
        "proj_bias": block.attn.proj.bias is not None,
        "class_token": model.cls_token is not None,
        "pos_embed": "learn" if model.pos_embed is not None else "none",
        "no_embed_class": bool(model.no_embed_class),
        "reg_tokens": int(model.num_reg_tokens),
        "pre_norm": not isinstance(model.norm_pre, nn.Identity),
        "final_norm": not (isinstance(model.norm, nn.Identity) and isinstance(model.fc_norm, nn.Identity)),
        "fc_norm": not isinstance(model.fc_norm, nn.Identity),
        "pool_include_prefix": bool(model.pool_include_prefix),
        "dynamic_img_size": bool(model.dynamic_img_size),
        "dynamic_img_pad": bool(model.patch_embed.dynamic_img_pad),
    }


def _distilled_options(model: Any) -> dict[str, Any]:
    options = _vit_options(model)
    for fixed in ("class_token", "reg_tokens", "no_embed_class", "pool_include_prefix", "pos_embed", "fc_norm"):
        options.pop(fixed)
    return options


def _eva_options(model: Any) -> dict[str, Any]:
    block, pool = model.blocks[0], model.attn_pool
    groups = [int(getattr(one.attn, "num_kv_groups", 1)) for one in model.blocks]
    packed = type(block.mlp) is SwiGLU and isinstance(block.mlp.norm, nn.Identity)
    return {
        "qkv_fused": block.attn.qkv is not None,
        "num_kv_heads": [one.attn.num_kv_heads for one in model.blocks] if max(groups) > 1 else None,
        "qk_norm": not isinstance(block.attn.q_norm, nn.Identity),
        "swiglu_mlp": type(block.mlp) in (SwiGLU, GluMlp),
        # Any alignment selects SwiGLU in place of GluMlp; 1 leaves the width as it was read.
        "swiglu_align_to": 1 if packed else 0,
        "scale_mlp": not isinstance(block.mlp.norm, nn.Identity),
        "scale_attn_inner": not isinstance(block.attn.norm, nn.Identity),
        "attn_type": "eva" if type(block.attn) is eva.EvaAttention else "rope",
        "attn_only_layer_scale": _layer_scale(block) is not None and block.gamma_2 is None,
        "class_token": model.cls_token is not None,
        "num_reg_tokens": 0 if model.reg_token is None else int(model.reg_token.shape[1]),
        "no_embed_class": bool(model.no_embed_class),
        "use_abs_pos_emb": model.pos_embed is not None,
        "use_post_norm": type(block) is eva.EvaBlockPostNorm,
        "use_pre_transformer_norm": not isinstance(model.norm_pre, nn.Identity),
        "use_post_transformer_norm": not isinstance(model.norm, nn.Identity),
        "use_fc_norm": not isinstance(model.fc_norm, nn.Identity),
        "attn_pool_num_heads": None if pool is None else int(pool.num_heads),
        "attn_pool_mlp_ratio": None if pool is None else _mlp_ratio(pool.mlp),
        "dynamic_img_size": bool(model.dynamic_img_size),
        "dynamic_img_pad": bool(model.patch_embed.dynamic_img_pad),
        **_rope_options(model.rope),
    }


def _rope_options(rope: Any) -> dict[str, Any]:
    if rope is None:
        return {"use_rot_pos_emb": False}
    return {
        "use_rot_pos_emb": True,
        "rope_type": _ROPE_TYPES[type(rope)],
        "rope_temperature": rope.temperature,
        "rope_grid_indexing": rope.grid_indexing,
        "rope_grid_offset": getattr(rope, "grid_offset", 0.0),
        "rope_rotate_half": bool(getattr(rope, "rotate_half", False)),
        "rope_shift_coords": rope.shift_coords,
        "rope_jitter_coords": rope.jitter_coords,
        "rope_rescale_coords": rope.rescale_coords,
        "rope_mrope_section": _plain(getattr(rope, "mrope_section", None)),
        "ref_feat_shape": _plain(getattr(rope, "ref_feat_shape", None)),
    }


_ROPE_TYPES: dict[type[nn.Module], str] = {
    RotaryEmbeddingCat: "cat",
    RotaryEmbeddingMixed: "mixed",
    RotaryEmbeddingDinoV3: "dinov3",
    RotaryEmbeddingMRope: "mrope",
}


def _beit_options(model: Any) -> dict[str, Any]:
    block = model.blocks[0]
    return {
        "swiglu_mlp": type(block.mlp) is SwiGLU,
        "scale_mlp": not isinstance(block.mlp.norm, nn.Identity),
        "use_abs_pos_emb": model.pos_embed is not None,
        "use_rel_pos_bias": block.attn.relative_position_bias_table is not None,
        "use_shared_rel_pos_bias": model.rel_pos_bias is not None,
        "use_fc_norm": not isinstance(model.fc_norm, nn.Identity),
    }


_OPTIONS: dict[type[nn.Module], Any] = {
    vision_transformer.VisionTransformer: _vit_options,
    deit.VisionTransformerDistilled: _distilled_options,
    eva.Eva: _eva_options,
    beit.Beit: _beit_options,
}


def _builds_the_same(base: BaseModel, model: nn.Module) -> bool:
    try:
        # What a saved file cannot hold, such as a norm layer's class, is no description.
        json.dumps(base.options)
        with torch.device("meta"):
            rebuilt = build_base(base)
    except (AssertionError, AttributeError, KeyError, RuntimeError, TypeError, ValueError, VitslimError):
        # A refusal of timm's constructor only means that this guess was wrong.
        return False
    return _signature(rebuilt) == _signature(model)


def _signature(model: nn.Module) -> dict[str, Any]:
    """Names and shapes of all tensors, type and plain settings of every layer."""
    tensors = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    layers = {name: (type(module).__name__, _settings(module)) for name, module in model.named_modules()}
    return {"tensors": tensors, "layers": layers}


def _settings(module: nn.Module) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in vars(module).items():
        if name.startswith("_") or name in ("training", "grad_checkpointing", "init_values"):
            continue
        parts = cast("tuple[Any, ...]", value) if isinstance(value, tuple) else (value,)
        if value is None or all(isinstance(part, (bool, int, float, str)) for part in parts):
            plain[name] = value
    return plain
