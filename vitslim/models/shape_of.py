"""The sizes of a dense model that plans are made of."""

from __future__ import annotations

from typing import Any, cast

from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from vitslim.models.adapter import BlockAdapter
from vitslim.models.families import adapter_for
from vitslim.models.layout import token_layout
from vitslim.models.readout import reads_class_token_alone
from vitslim.models.stream_width import stream_maps
from vitslim.plans import BlockShape, LinearShape, ModelShape
from vitslim.plans.place import relative_places
from vitslim.plans.shape import Part


def model_shape(model: nn.Module) -> ModelShape:
    """The shape of a dense timm model, on any device.

    Raises:
        UnsupportedModelError: no adapter knows the model.
    """
    adapter, layout = adapter_for(model), token_layout(model)
    size = tuple(int(side) for side in cast(Any, model).patch_embed.img_size)
    blocks = list(cast("list[nn.Module]", model.blocks))
    return ModelShape(
        family=adapter.family,
        width=int(cast(Any, model).embed_dim),
        prefix=adapter.prefix,
        has_class_token=adapter.has_class_token,
        image_size=cast("tuple[int, int]", size),
        patch=(size[0] // int(layout.grid[0]), size[1] // int(layout.grid[1])),
        channels=int(getattr(model, "in_chans", 3)),
        positions_per_block=_rotary_parameters(model) // len(blocks),
        own_bias=any(adapter.own_bias(block) is not None for block in blocks),
        blocks=tuple(_block_shape(block, adapter) for block in blocks),
        **outside_shape(model),
    )


def outside_shape(model: nn.Module) -> dict[str, Any]:
    """The fields of a ``ModelShape`` that say what surrounds the blocks, which may be exchanged after a conversion."""
    layout = token_layout(model)
    size = tuple(int(side) for side in cast(Any, model).patch_embed.img_size)
    grid = (int(layout.grid[0]), int(layout.grid[1]))
    shared_bias = cast("Any", getattr(model, "rel_pos_bias", None))
    shared_heads = 0 if shared_bias is None else int(shared_bias.relative_position_bias_table.shape[1])
    positions = getattr(model, "pos_embed", None)
    per_patch = int(positions.shape[-1]) if isinstance(positions, Tensor) else 0
    outside = sum(parameter.numel() for parameter in model.parameters())
    outside -= sum(parameter.numel() for parameter in cast(nn.Module, model.blocks).parameters())
    outside -= _rotary_parameters(model)
    outside -= sum(linear.weight.numel() for linear in stream_maps(model))
    head, head_per_token = _head_products(model)
    return {
        "reads_class_token_alone": reads_class_token_alone(model),
        "pools": str(getattr(model, "global_pool", "")),
        "two_heads": hasattr(model, "head_dist"),
        "embed_products": _embed_products(cast(nn.Module, model.patch_embed), size, grid),
        "head_products": head,
        "head_products_per_token": head_per_token,
        "outside_parameters": outside - per_patch * grid[0] * grid[1] - shared_heads * relative_places(grid),
        "positions_per_patch": per_patch,
        "shared_relative_heads": shared_heads,
    }


def _rotary_parameters(model: nn.Module) -> int:
    """Of mixed rotary positions, the tables of all blocks together."""
    return cast(Any, model).rope.freqs.numel() if getattr(model, "rope_mixed", False) else 0


def _block_shape(block: nn.Module, adapter: BlockAdapter) -> BlockShape:
    attn = cast(Any, block.attn)
    heads = int(attn.num_heads)
    groups = heads // int(getattr(attn, "num_kv_groups", 1))
    linears = {path: _linear(path, linear, attn) for path, linear in _linear_maps(block)}
    hidden = next(linear.inputs for linear in linears.values() if linear.part == "mlp" and linear.is_projection)
    table = getattr(attn, "relative_position_bias_table", None)
    others: dict[Part, int] = {"attention": 0, "attention_add": 0, "mlp": 0}
    per_group = per_neuron = 0
    mapped = {f"{path}.{kind}" for path in linears for kind in ("weight", "bias")}
    for name, parameter in block.named_parameters():
        if name in mapped or parameter is table:
            continue
        others[_part_of(name, adapter)] += parameter.numel()
        if name.startswith(("attn.norm.", "attn.q_bias", "attn.v_bias")):
            per_group += parameter.numel() // groups
        if name.startswith("mlp.norm."):
            per_neuron += parameter.numel() // hidden
    return BlockShape(
        heads=heads,
        groups=groups,
        head_width=round(float(attn.scale) ** -2),
        hidden=hidden,
        linears=linears,
        others=others,
        others_per_group=per_group,
        others_per_neuron=per_neuron,
        attention_dropout=adapter.attention_dropout(block),
        relative_positions=table is not None,
        others_per_channel=_per_channel(block, adapter),
    )


def _per_channel(block: nn.Module, adapter: BlockAdapter) -> dict[Part, int]:
    """Parameters of norms and LayerScale for each channel of the stream; empty where it cannot be narrowed."""
    if not adapter.narrows_stream(block):
        return {}
    counts: dict[Part, int] = {"attention": 0, "attention_add": 0, "mlp": 0}
    for name, _ in block.named_parameters():
        if name.partition(".")[0] in ("norm1", "norm2", "ls1", "ls2", "gamma_1", "gamma_2"):
            counts[_part_of(name, adapter)] += 1
    return counts


def _linear_maps(block: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(path, module) for path, module in block.named_modules() if isinstance(module, nn.Linear)]


def _linear(path: str, linear: nn.Linear, attn: Any) -> LinearShape:
    name = path.rpartition(".")[2]
    is_mlp = path.startswith("mlp.")
    if is_mlp:
        follows = "hidden"
    else:
        follows = "groups" if name in ("qkv", "k_proj", "v_proj") else "heads"
    return LinearShape(
        part="mlp" if is_mlp else "attention",
        outputs=linear.out_features,
        inputs=linear.in_features,
        bias=cast("Tensor | None", linear.bias) is not None,
        follows=follows,
        is_projection=name in ("proj", "fc2"),
        # timm reads the matrix where the bias of the keys is none of the map's own.
        reads_weight=name == "qkv" and getattr(attn, "q_bias", None) is not None and not attn.qkv_bias_separate,
    )


def _part_of(name: str, adapter: BlockAdapter) -> Part:
    first = name.partition(".")[0]
    if first in adapter.attention_parts:
        return "attention"
    return "attention_add" if first in adapter.attention_add_parts else "mlp"


def _embed_products(embed: nn.Module, size: tuple[int, ...], grid: tuple[int, int]) -> int:
    """Of the convolutions, per patch; each is taken to divide the image as often as its strides do."""
    total, rows, columns = 0.0, float(size[0]), float(size[1])
    for module in embed.modules():
        if isinstance(module, nn.Conv2d):
            rows, columns = rows / module.stride[0], columns / module.stride[1]
            total += module.weight.numel() * rows * columns
    return round(total / (grid[0] * grid[1]))


def _head_products(model: nn.Module) -> tuple[int, int]:
    """(fixed, per token) of everything behind the blocks."""
    heads = [getattr(model, name, None) for name in ("head", "head_dist")]
    fixed = sum(head.weight.numel() for head in heads if isinstance(head, nn.Linear))
    pool = getattr(model, "attn_pool", None)
    if not isinstance(pool, AttentionPoolLatent):
        return fixed, 0
    inner, latents = cast(Any, pool), int(pool.latent_len)
    maps = [inner.q, inner.proj, *(module for module in inner.mlp.modules())] if inner.mlp is not None else [inner.q]
    fixed += latents * sum(module.weight.numel() for module in maps if isinstance(module, nn.Linear))
    # keys and values of every token; Q Kᵀ and A V of every latent
    return fixed, inner.kv.weight.numel() + 2 * latents * int(inner.kv.in_features)
