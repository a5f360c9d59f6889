"""Small dense models, one per way in which a supported timm block can look inside."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import timm
import torch
from timm.layers import Attention, HybridEmbed
from timm.models.beit import Beit
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn

SIZE: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 10}
"""4 blocks, 48 wide, 32 pixels: 16 patches on a grid of 4 × 4, heads of 16."""

VIT: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer_scale": {"init_values": 0.1, "drop_path_rate": 0.3},
    "inner_norms": {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True},
    "no_bias": {"qkv_bias": False, "proj_bias": False},
    "one_register": {"reg_tokens": 1},
    "four_registers": {"reg_tokens": 4, "no_embed_class": True},
    "no_class_token": {"class_token": False, "global_pool": "avg"},
    "registers_without_class_token": {"class_token": False, "reg_tokens": 4, "global_pool": "avg"},
    "map_pooling": {"class_token": False, "global_pool": "map"},
    "dynamic_size": {"dynamic_img_size": True},
    "pre_norm": {"pre_norm": True},
    "oblong": {"img_size": (32, 48)},
}

EVA: dict[str, dict[str, Any]] = {
    "absolute": {},
    "rotary": {"use_rot_pos_emb": True},
    "mixed_rotary": {"use_rot_pos_emb": True, "rope_type": "mixed", "use_abs_pos_emb": False},
    "eva02": {"use_rot_pos_emb": True, "qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "mlp_ratio": 8 / 3},
    "packed_swiglu": {"swiglu_mlp": True, "scale_attn_inner": True},
    "aligned_swiglu": {"swiglu_mlp": True, "swiglu_align_to": 32, "mlp_ratio": 2.4},
    "post_norm": {"use_post_norm": True, "drop_path_rate": 0.3},
    "rope_attention": {"attn_type": "rope", "use_rot_pos_emb": True, "ref_feat_shape": (8, 8)},
    "dinov3": {
        "attn_type": "rope",
        "use_rot_pos_emb": True,
        "rope_type": "dinov3",
        "rope_rotate_half": True,
        "rope_temperature": 100.0,
        "use_abs_pos_emb": False,
        "num_reg_tokens": 4,
        "qkv_bias": False,
        "init_values": 0.1,
        "global_pool": "avg",
        "use_fc_norm": False,
        "dynamic_img_size": True,
    },
    "perception_encoder": {
        "attn_type": "rope",
        "use_rot_pos_emb": True,
        "rope_grid_indexing": "xy",
        "rope_grid_offset": 1.0,
        "use_pre_transformer_norm": True,
        "use_post_transformer_norm": True,
        "use_fc_norm": False,
        "global_pool": "map",
        "attn_pool_num_heads": 4,
        "attn_pool_mlp_ratio": 2.0,
        "init_values": 0.1,
    },
    "grouped_queries": {
        "attn_type": "rope",
        "use_rot_pos_emb": True,
        "rope_type": "mrope",
        "rope_mrope_section": (2, 3, 3),
        "qkv_fused": False,
        "num_kv_heads": (3, 1, 1, 3),
        "qk_norm": True,
        "init_values": 0.1,
        "attn_only_layer_scale": True,
    },
    "without_class_token": {"class_token": False, "use_rot_pos_emb": True},
}

BEIT: dict[str, dict[str, Any]] = {
    "own_bias": {"use_rel_pos_bias": True, "init_values": 0.1},
    "shared_bias": {"use_shared_rel_pos_bias": True, "use_abs_pos_emb": False},
    "both_biases": {"use_rel_pos_bias": True, "use_shared_rel_pos_bias": True, "global_pool": "token"},
    "absolute": {"swiglu_mlp": True, "scale_mlp": True, "drop_path_rate": 0.3},
}


def _gated(model: nn.Module, attention: Callable[..., nn.Module]) -> nn.Module:
    # timm reaches gated attention through NaFlex only; the module itself may stand in any block.
    for block in model.blocks:
        block.attn = attention(48, num_heads=3, gated=True)
    return model


def _hybrid() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 12, 4, stride=4), nn.ReLU())
    embed = partial(HybridEmbed, backbone=stem)
    return VisionTransformer(**{**SIZE, "patch_size": 2}, embed_layer=embed)


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    **{f"vit_{name}": partial(VisionTransformer, **{**SIZE, **options}) for name, options in VIT.items()},
    "vit_hybrid": _hybrid,
    "vit_gated": lambda: _gated(VisionTransformer(**SIZE), Attention),
    "vit_post_norm": lambda: VisionTransformer(**SIZE, block_fn=ResPostBlock, init_values=0.1),
    "distilled": partial(VisionTransformerDistilled, **SIZE),
    **{f"eva_{name}": partial(Eva, **{**SIZE, **options}) for name, options in EVA.items()},
    "eva_gated": lambda: _gated(Eva(**SIZE), partial(EvaAttention, norm_layer=nn.LayerNorm)),
    **{f"beit_{name}": partial(Beit, **{**SIZE, **options}) for name, options in BEIT.items()},
    **{
        name: partial(timm.create_model, name, img_size=64)
        for name in timm.list_models("test_vit*", exclude_filters="*relpos*")
    },
}

ALL = list(BUILDERS)

ONE_PER_ADAPTER = ["vit_layer_scale", "vit_post_norm", "eva_mixed_rotary", "eva_post_norm", "beit_both_biases"]
"""One of each adapter class and block class, for what takes seconds."""

CHARACTERISTIC = [
    *ONE_PER_ADAPTER,
    "vit_oblong",
    "vit_four_registers",
    "vit_registers_without_class_token",
    "vit_map_pooling",
    "vit_dynamic_size",
    "distilled",
    "eva_dinov3",
    "eva_grouped_queries",
    "beit_own_bias",
]
"""What differs for a method: the tokens, the pooling, the position terms, the operands of the attention."""

NOT_DESCRIBABLE = {"vit_hybrid", "vit_gated", "vit_post_norm", "eva_gated"}
"""Built by hand from classes that no saved file can name."""


@cache
def dense(name: str, **changes: Any) -> nn.Module:
    """The variant in eval mode, with weights that make every part matter. Shared between tests: never change it.

    The time of an export grows with the number of blocks: ``depth`` says how many it takes to show something.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively_(BUILDERS[name](**changes)).eval()


@torch.no_grad()
def lively_(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw all parameters anew: timm starts biases, gates and classifiers at 0, where a wrong sum would not show."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2:
            parameter.copy_(noise * parameter[0].numel() ** -0.5)
        else:
            # LayerNorm weights and LayerScale around their start, biases around 0.
            parameter.add_(0.2 * noise)
    return model


def images_for(model: nn.Module, batch: int = 2, seed: int = 0) -> Tensor:
    """Noise of the model's own image size."""
    height, width = model.patch_embed.img_size
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
