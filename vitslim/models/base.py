"""How a dense model can be built again: the name and options that a saved conversion starts from."""

from typing import Any, cast

import torch
from pydantic import Field
from timm.models import beit, deit, eva, vision_transformer
from torch import nn

from vitslim.errors import CheckpointError
from vitslim.shapes import Config

_ATTRIBUTE = "vitslim_base"


class BaseModel(Config):
    """The dense model under a conversion.

    ``architecture`` is a timm name (or ``builtin``), or, for a module that was built by hand, the class name with a
    leading colon, as in ``:VisionTransformer``. ``options`` are what must be passed beside it.
    """

    architecture: str
    options: dict[str, Any] = Field(default_factory=dict)


def remember_base(model: nn.Module, base: BaseModel) -> nn.Module:
    """Note on the model itself how it was built."""
    setattr(model, _ATTRIBUTE, base)
    return model


def describe(model: nn.Module) -> BaseModel | None:
    """How to build the dense model again, at the size and number of classes that it has now.

    A model that ``open_model`` built remembers. For others the options are read off the module, and believed only if
    building with them gives the same parameters and the same settings in every layer.

    Returns:
        ``None`` when the module cannot be described; saving then asks for ``base=``.
    """
    remembered = cast("BaseModel | None", getattr(model, _ATTRIBUTE, None))
    if remembered is not None:
        return refresh(remembered, model)
    for candidate in _candidates(model):
        if _builds_the_same(candidate, model):
            return candidate
    return None


def refresh(base: BaseModel, model: nn.Module) -> BaseModel:
    """``base`` with the settings that may have changed since: classes, pooling, image size."""
    options = {**base.options, **_current(model)}
    return BaseModel(architecture=base.architecture, options=options)


def build_base(base: BaseModel) -> nn.Module:
    """Build the dense model that ``base`` describes, with random weights."""
    if base.architecture.startswith(":"):
        known = {kind.__name__: kind for kind in _OPTIONS}
        kind = known.get(base.architecture[1:])
        if kind is None:
            raise CheckpointError(f"base model class {base.architecture[1:]!r} is not one of {', '.join(known)}")
        return kind(**base.options)
    from vitslim.models.open import open_model

    return open_model(base.architecture, pretrained=False, **base.options)


def _current(model: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"num_classes": int(model.num_classes), "global_pool": str(model.global_pool)}
    size = getattr(model.patch_embed, "img_size", None)
    if size is not None:
        options["img_size"] = [int(size[0]), int(size[1])]
    return options


def _candidates(model: nn.Module) -> list[BaseModel]:
    found: list[BaseModel] = []
    architecture = cast(Any, getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    if type(model) not in _OPTIONS:
        return found
    inferred = _infer(model)
    if architecture:
        common = {
            **_current(model),
            "in_chans": inferred["in_chans"],
            "dynamic_img_size": inferred["dynamic_img_size"],
        }
        drops = {name: value for name, value in inferred.items() if name.endswith("_rate")}
        found.append(BaseModel(architecture=architecture, options=common))
        found.append(BaseModel(architecture=architecture, options={**common, **drops}))
        widths = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "init_values")
        found.append(
            BaseModel(architecture=architecture, options={**common, **drops, **{k: inferred[k] for k in widths}})
        )
    found.append(BaseModel(architecture=f":{type(model).__name__}", options=inferred))
    return found


def _infer(model: Any) -> dict[str, Any]:
    """Constructor arguments read off a module; ``_builds_the_same`` decides whether they are right."""
    block = model.blocks[0]
    attn = block.attn
    mlp = getattr(block.mlp, "fc1", None) or block.mlp.fc1_x
    rates = [float(getattr(one.drop_path1, "drop_prob", 0.0) or 0.0) for one in model.blocks]
    read: dict[str, Any] = {
        **_current(model),
        "patch_size": list(model.patch_embed.patch_size),
        "in_chans": int(model.patch_embed.proj.in_channels),
        "embed_dim": int(model.embed_dim),
        "depth": len(model.blocks),
        "num_heads": int(attn.num_heads),
        "mlp_ratio": mlp.out_features / int(model.embed_dim),
        "qkv_bias": (attn.qkv is not None and attn.qkv.bias is not None) or getattr(attn, "q_bias", None) is not None,
        "init_values": _layer_scale(block),
        "drop_path_rate": rates[-1],
        "drop_rate": float(model.head_drop.p),
        "pos_drop_rate": float(getattr(model.pos_drop, "p", 0.0)),
        "attn_drop_rate": float(attn.attn_drop.p),
        "proj_drop_rate": float(attn.proj_drop.p),
    }
    read.update(_OPTIONS[type(model)](model))
    return read


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
    }


def _distilled_options(model: Any) -> dict[str, Any]:
    options = _vit_options(model)
    for fixed in ("class_token", "reg_tokens", "no_embed_class", "pool_include_prefix", "pos_embed", "fc_norm"):
        options.pop(fixed)
    return options


def _eva_options(model: Any) -> dict[str, Any]:
    block = model.blocks[0]
    fused = block.attn.qkv is not None
    return {
        "qkv_bias": (block.attn.q_bias if fused else block.attn.q_proj.bias) is not None
        if hasattr(block.attn, "q_bias")
        else (block.attn.qkv if fused else block.attn.q_proj).bias is not None,
        "qkv_fused": fused,
        "qk_norm": not isinstance(block.attn.q_norm, nn.Identity),
        "swiglu_mlp": type(block.mlp).__name__ in ("SwiGLU", "GluMlp"),
        "scale_mlp": not isinstance(block.mlp.norm, nn.Identity),
        "scale_attn_inner": not isinstance(block.attn.norm, nn.Identity),
        "attn_type": "eva" if type(block.attn) is eva.EvaAttention else "rope",
        "class_token": model.cls_token is not None,
        "num_reg_tokens": 0 if model.reg_token is None else int(model.reg_token.shape[1]),
        "no_embed_class": bool(model.no_embed_class),
        "use_abs_pos_emb": model.pos_embed is not None,
        "use_rot_pos_emb": model.rope is not None,
        "rope_rotate_half": bool(getattr(block.attn, "rotate_half", False)),
        "use_post_norm": type(block) is eva.EvaBlockPostNorm,
        "dynamic_img_size": bool(model.dynamic_img_size),
    }


def _beit_options(model: Any) -> dict[str, Any]:
    block = model.blocks[0]
    return {
        "swiglu_mlp": type(block.mlp).__name__ == "SwiGLU",
        "scale_mlp": not isinstance(block.mlp.norm, nn.Identity),
        "use_abs_pos_emb": model.pos_embed is not None,
        "use_rel_pos_bias": block.attn.relative_position_bias_table is not None,
        "use_shared_rel_pos_bias": model.rel_pos_bias is not None,
        "dynamic_img_size": False,
    }


_OPTIONS: dict[type[nn.Module], Any] = {
    vision_transformer.VisionTransformer: _vit_options,
    deit.VisionTransformerDistilled: _distilled_options,
    eva.Eva: _eva_options,
    beit.Beit: _beit_options,
}


def _builds_the_same(base: BaseModel, model: nn.Module) -> bool:
    options = dict(base.options)
    if not options.get("dynamic_img_size", False):
        options.pop("dynamic_img_size", None)
    try:
        with torch.device("meta"):
            twin = build_base(base)
    except Exception:
        # Any refusal of timm's constructor only means that this guess was wrong.
        return False
    return _signature(twin) == _signature(model)


def _signature(model: nn.Module) -> dict[str, Any]:
    """Names and shapes of all tensors, type and plain settings of every layer."""
    tensors = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    layers = {
        name: (type(module).__name__, sorted((k, v) for k, v in vars(module).items() if _is_setting(k, v)))
        for name, module in model.named_modules()
    }
    return {"tensors": tensors, "layers": layers}


def _is_setting(name: str, value: Any) -> bool:
    if name.startswith("_") or name in ("training", "grad_checkpointing", "init_values"):
        return False
    return isinstance(value, (bool, int, float, str)) or value is None
