"""The functions through which everything else speaks to a timm block.

A block adapter is the only code that knows what a block looks like inside. It never repeats timm's attention: the
module itself is called, and where a method needs the queries and keys, a function here projects them; a test compares
the two.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from timm.layers import GluMlp, Mlp, SwiGLU
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import EvaAttention
from torch import Tensor, nn

from vitslim.errors import UnsupportedModelError
from vitslim.kernels.token_selection import class_row

Context = Mapping[str, Any]
"""Keyword arguments that timm hands to a block: ``rope``, ``attn_mask``, ``is_causal``, ``shared_rel_pos_bias``."""

ATTENTION_INPUTS = ("qkv", "q_proj", "k_proj", "v_proj", "gate")
"""Maps that read what the norm in front of the attention gives, as far as a block has them."""
MLP_INPUTS = ("fc1", "fc1_g", "fc1_x")
"""The same of the MLP."""


@dataclass(frozen=True)
class BlockAdapter:
    """What all supported families share; a family overrides the two branches.

    Args:
        family: timm family, for messages and lists.
        prefix: number of class, distillation and register tokens at the front.
        has_class_token: whether token 0 is a class token.
        context_per_block: timm keeps one entry of the context for each block (mixed rotary positions), so that there
            is none for further applications.
    """

    family: str
    prefix: int
    has_class_token: bool
    context_per_block: bool = False

    # Parts of a block that only its attention branch reads: dropped when no step uses that branch.
    attention_parts: tuple[str, ...] = ("norm1", "attn")

    attention_add_parts: ClassVar[tuple[str, ...]] = ("norm1", "ls1", "gamma_1", "drop_path1")
    """Parts that the output of the attention branch passes on its way to the residual stream."""

    layer_scales: ClassVar[tuple[str, ...]] = ()
    """Where the scales of attention and MLP lie, in blocks that may run on a narrower stream."""

    mlp_parts: ClassVar[tuple[str, ...]] = ("norm2", "mlp", "ls2", "gamma_2", "drop_path2")
    """Parts that only the MLP branch reads."""

    def attention_input(self, block: nn.Module, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """What the attention module reads."""
        return _part(block, "norm1")(tokens)

    def attend(
        self, block: nn.Module, attention_input: Float[Tensor, "b n d"], context: Context
    ) -> Float[Tensor, "b n d"]:
        """Z^MSA: the attention module's output before LayerScale, DropPath and the residual add."""
        return _part(block, "attn")(attention_input, **context)

    def add_attention(
        self, block: nn.Module, tokens: Float[Tensor, "b n d"], z: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b n d"]:
        """The residual add of the attention branch, for any Z."""
        return tokens + self.attention_branch(block, z)

    def add_mlp(self, block: nn.Module, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The MLP branch with its residual add."""
        return tokens + self.mlp_branch(block, tokens)

    def attention_branch(self, block: nn.Module, z: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """What the attention branch adds for a Z: LayerScale, DropPath, a norm after the branch."""
        raise NotImplementedError

    def mlp_branch(self, block: nn.Module, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """What the MLP branch adds, its norm included."""
        raise NotImplementedError

    def queries_keys_values(
        self, block: nn.Module, attention_input: Float[Tensor, "b n d"], context: Context
    ) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h n e"], Float[Tensor, "b h n e"]]:
        """The operands of scaled dot-product attention, after q/k-norm and rotary positions, q not yet scaled."""
        attn = _part(block, "attn")
        query, key, value = _project(attn, attention_input)
        if hasattr(attn, "q_norm"):
            query, key = attn.q_norm(query), attn.k_norm(key)
        rope = context.get("rope")
        if rope is not None:
            query, key = (_rotate(attn, part, rope).type_as(value) for part in (query, key))
        groups = getattr(attn, "num_kv_groups", 1)
        if groups > 1:
            key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
        return query, key, value

    def mix(
        self,
        block: nn.Module,
        query: Float[Tensor, "b h n e"],
        key: Float[Tensor, "b h m e"],
        value: Float[Tensor, "b h m e"],
        bias: Tensor | None,
    ) -> Float[Tensor, "b h n e"]:
        """Fused attention of given operands, with the block's scale and, in training, its dropout."""
        # Under autocast q and k may come out of a norm in another precision than v.
        query, key = query.to(value.dtype), key.to(value.dtype)
        mask = None if bias is None else bias.to(value.dtype)
        dropout = self.attention_dropout(block) if _part(block, "attn").training else 0.0
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=self.scale(block)
        )

    def merge_heads(
        self, block: nn.Module, attention_input: Float[Tensor, "b n d"], mixed: Float[Tensor, "b h n e"]
    ) -> Float[Tensor, "b n d"]:
        """Z from what attention mixed per head: concatenate, inner norm, gate, output projection."""
        attn = _part(block, "attn")
        merged = mixed.transpose(1, 2).flatten(2)
        if isinstance(getattr(attn, "norm", None), nn.Module):
            merged = attn.norm(merged)
        if getattr(attn, "gate", None) is not None:
            merged = merged * attn.gate(attention_input).sigmoid()
        return attn.proj_drop(attn.proj(merged))

    def attention_bias(self, block: nn.Module, context: Context, tokens: int) -> Tensor | None:
        """The additive bias of the scores, broadcastable to (b, h, n, n); ``None`` where there is none."""
        own, given = self.own_bias(block), self.context_bias(block, context, tokens)
        if own is None or given is None:
            return given if own is None else own
        return own + given

    def own_bias(self, block: nn.Module) -> Tensor | None:
        """The part of the bias that the block itself holds for all n tokens in natural order."""
        return None

    def context_bias(self, block: nn.Module, context: Context, tokens: int) -> Tensor | None:
        """The part of the bias that the context gives: masks, a bias that all blocks share."""
        if context.get("is_causal"):
            reference = cast(Tensor, _part(_part(block, "attn"), "proj").weight)
            return reference.new_full((tokens, tokens), float("-inf")).triu_(1)
        mask = context.get("attn_mask")
        if mask is not None and mask.dtype == torch.bool:
            return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))
        return mask

    def scale(self, block: nn.Module) -> float:
        """The factor of the scores, e^-½ in every supported family."""
        return float(_part(block, "attn").scale)

    def attention_dropout(self, block: nn.Module) -> float:
        """The rate at which attention weights are dropped in training, 0..1."""
        return float(_part(block, "attn").attn_drop.p)

    def hidden_activations(self, block: nn.Module, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n hidden"]:
        """What the MLP's output map reads: behind activation, gate and inner norm."""
        return inputs_of(self.mlp_output(block), lambda: self.mlp_branch(block, tokens))

    def mlp_output(self, block: nn.Module) -> nn.Linear:
        """The MLP's output map."""
        return _part(_part(block, "mlp"), "fc2")

    def attention_output(self, block: nn.Module) -> nn.Linear:
        """The attention's output projection."""
        return _part(_part(block, "attn"), "proj")

    def head_count(self, block: nn.Module) -> int:
        """Attention heads of queries."""
        return int(_part(block, "attn").num_heads)

    def heads_per_group(self, block: nn.Module) -> int:
        """Heads that share their keys and values."""
        return int(getattr(_part(block, "attn"), "num_kv_groups", 1))

    def z_that_adds(self, block: nn.Module, added: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"] | None:
        """The Z for which the attention branch adds this, as far as its LayerScale lets it; ``None`` behind a norm."""
        return None

    def mlp_output_that_adds(self, block: nn.Module, added: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"] | None:
        """What the MLP's output map has to give so that the branch adds this; ``None`` behind a norm."""
        return None

    def neuron_norms(self, block: nn.Module) -> Float[Tensor, " hidden"]:
        """The product of the squared norms of each neuron's weights, for want of activations."""
        mlp, hidden = _part(block, "mlp"), self.mlp_output(block).in_features
        norms = [
            _part(mlp, name).weight.square().sum(1).unflatten(0, (-1, hidden)).prod(0)
            for name in MLP_INPUTS
            if hasattr(mlp, name)
        ]
        return torch.stack([*norms, mlp.fc2.weight.square().sum(0)]).prod(0)

    def head_norms(self, block: nn.Module) -> Float[Tensor, " heads"]:
        """‖W_o W_v‖² of each head, for want of activations."""
        attn = _part(block, "attn")
        values = attn.v_proj.weight if getattr(attn, "qkv", None) is None else attn.qkv.weight.chunk(3)[2]
        values = values.unflatten(0, (-1, round(attn.scale**-2)))
        values = values.repeat_interleave(getattr(attn, "num_kv_groups", 1), dim=0)
        outputs = attn.proj.weight.unflatten(1, (attn.num_heads, -1)).transpose(0, 1)
        return (outputs @ values).square().sum(dim=(1, 2))

    def narrow_mlp_(self, block: nn.Module, neurons: Int[Tensor, " k"]) -> None:
        """Leave the MLP only these neurons, with their weights.

        Raises:
            UnsupportedModelError: an MLP that is more than maps in, an activation, perhaps a gate, and a map out.
        """
        mlp = _part(block, "mlp")
        if type(mlp) not in (Mlp, GluMlp, SwiGLU):
            raise UnsupportedModelError(
                f"{self.family}: no adapter narrows a {type(mlp).__name__}; supported: Mlp, GluMlp, SwiGLU"
            )
        hidden = self.mlp_output(block).in_features
        for name in MLP_INPUTS:
            if hasattr(mlp, name):
                parts = getattr(mlp, name).out_features // hidden  # a packed gate has two
                _keep_outputs_(getattr(mlp, name), torch.cat([neurons + part * hidden for part in range(parts)]))
        _keep_normed_(mlp.norm, neurons)
        _keep_inputs_(mlp.fc2, neurons)

    def narrow_heads_(self, block: nn.Module, heads: Int[Tensor, " k"]) -> None:
        """Leave the attention only these heads, with their weights; of grouped queries whole groups, in order."""
        attn = _part(block, "attn")
        width, shared, count = round(attn.scale**-2), getattr(attn, "num_kv_groups", 1), attn.num_heads
        channels = _channels(heads, width)
        if getattr(attn, "qkv", None) is not None:
            _keep_outputs_(attn.qkv, torch.cat([channels + part * count * width for part in range(3)]))
        else:
            groups = _channels(heads[::shared] // shared, width)
            for linear, kept in ((attn.q_proj, channels), (attn.k_proj, groups), (attn.v_proj, groups)):
                _keep_outputs_(linear, kept)
        for name in ("q_bias", "k_bias", "v_bias"):
            _keep_entries_(attn, name, channels)
        if getattr(attn, "relative_position_bias_table", None) is not None:
            table = attn.relative_position_bias_table
            attn.relative_position_bias_table = nn.Parameter(table.detach()[:, heads], table.requires_grad)
        if getattr(attn, "gate", None) is not None:
            _keep_outputs_(attn.gate, channels)
        _keep_normed_(getattr(attn, "norm", None), channels)
        _keep_inputs_(attn.proj, channels)
        sizes = {"num_heads": len(heads), "num_kv_heads": len(heads) // shared, "attn_dim": len(channels)}
        for name, size in (sizes | {"kv_dim": len(channels) // shared}).items():
            if hasattr(attn, name):
                setattr(attn, name, size)

    def take_neurons_(self, block: nn.Module, dense: nn.Module, neurons: Int[Tensor, " k"]) -> None:
        """Set a narrow MLP to these neurons of the dense block."""
        narrow = copy.deepcopy(dense)
        self.narrow_mlp_(narrow, neurons)
        _part(block, "mlp").load_state_dict(_part(narrow, "mlp").state_dict())

    def take_heads_(self, block: nn.Module, dense: nn.Module, heads: Int[Tensor, " k"]) -> None:
        """Set a narrow attention to these heads of the dense block."""
        narrow = copy.deepcopy(dense)
        self.narrow_heads_(narrow, heads)
        _part(block, "attn").load_state_dict(_part(narrow, "attn").state_dict())

    def narrows_stream(self, block: nn.Module) -> bool:
        """Whether a block of this kind can be made to run on fewer channels; see ``vitslim.models.stream_width``."""
        norms = (_part(block, name) for name in ("norm1", "norm2"))
        known = type(_part(block, "mlp")) in (Mlp, GluMlp, SwiGLU)
        return bool(self.layer_scales) and known and all(isinstance(norm, nn.LayerNorm) for norm in norms)

    def class_attention(
        self, block: nn.Module, attention_input: Float[Tensor, "b n d"], context: Context
    ) -> Float[Tensor, "b h n"]:
        """A^[CLS]: the class token's row of the attention, per head; each row sums to 1.

        Without a class token: the row of the mean patch query, that is softmax(mean(q) Kᵀ e^-½), with the bias
        averaged over those of the same queries that may see the key. It costs n·d as the class row does.
        """
        query, key, _ = self.queries_keys_values(block, attention_input, context)
        bias = self.attention_bias(block, context, key.shape[2])
        return self.class_row(query, key, bias, self.scale(block))

    def class_row(
        self, query: Float[Tensor, "b h n e"], key: Float[Tensor, "b h n e"], bias: Tensor | None, scale: float
    ) -> Float[Tensor, "b h n"]:
        """The row that ``class_attention`` describes, from operands that are already there."""
        if self.has_class_token:
            row = query[:, :, :1]
            bias_row = None if bias is None else bias[..., :1, :]
        else:
            row = query[:, :, self.prefix :].mean(dim=2, keepdim=True)
            bias_row = None if bias is None else self._mean_patch_row(bias)
        return class_row(row, key, bias_row, scale)

    def _mean_patch_row(self, bias: Tensor) -> Tensor:
        # A mask over keys alone has a single row, which serves all queries.
        rows = bias if bias.shape[-2] == 1 else bias[..., self.prefix :, :]
        # Queries that must not see a key (-inf) have no say in the key's mean; a key that none may see stays masked.
        seen = rows > float("-inf")
        mean = rows.masked_fill(~seen, 0.0).sum(dim=-2, keepdim=True) / seen.sum(dim=-2, keepdim=True).clamp_min(1)
        return mean.masked_fill(~seen.any(dim=-2, keepdim=True), float("-inf"))


class ViTAdapter(BlockAdapter):
    """``Block`` of timm's VisionTransformer: pre-norm, LayerScale and DropPath as modules."""

    layer_scales = ("ls1.gamma", "ls2.gamma")

    def attention_branch(self, block: nn.Module, z: Tensor) -> Tensor:
        return _part(block, "drop_path1")(_part(block, "ls1")(z))

    def mlp_branch(self, block: nn.Module, tokens: Tensor) -> Tensor:
        branch = _part(block, "mlp")(_part(block, "norm2")(tokens))
        return _part(block, "drop_path2")(_part(block, "ls2")(branch))

    def z_that_adds(self, block: nn.Module, added: Tensor) -> Tensor:
        return _unscaled(added, getattr(_part(block, "ls1"), "gamma", None))

    def mlp_output_that_adds(self, block: nn.Module, added: Tensor) -> Tensor:
        return _unscaled(added, getattr(_part(block, "ls2"), "gamma", None))


class PostNormAdapter(BlockAdapter):
    """Blocks that normalise a branch's output instead of its input: ``ResPostBlock`` and ``EvaBlockPostNorm``."""

    def attention_input(self, block: nn.Module, tokens: Tensor) -> Tensor:
        return tokens

    def attention_branch(self, block: nn.Module, z: Tensor) -> Tensor:
        return _part(block, "drop_path1")(_part(block, "norm1")(z))

    def mlp_branch(self, block: nn.Module, tokens: Tensor) -> Tensor:
        return _part(block, "drop_path2")(_part(block, "norm2")(_part(block, "mlp")(tokens)))


class GammaAdapter(BlockAdapter):
    """Blocks whose LayerScale is a bare parameter or absent: ``EvaBlock`` and ``Beit``'s block."""

    layer_scales = ("gamma_1", "gamma_2")

    def attend(self, block: nn.Module, attention_input: Tensor, context: Context) -> Tensor:
        attn = _part(block, "attn")
        if not isinstance(attn, EvaAttention) or attn.proj.in_features == attention_input.shape[-1]:
            return super().attend(block, attention_input, context)
        # Its own forward takes the stream to be as wide as its heads are together.
        query, key, value = self.queries_keys_values(block, attention_input, context)
        bias = self.attention_bias(block, context, attention_input.shape[1])
        return self.merge_heads(block, attention_input, self.mix(block, query, key, value, bias))

    def attention_branch(self, block: nn.Module, z: Tensor) -> Tensor:
        gamma = cast("Tensor | None", block.gamma_1)
        return _part(block, "drop_path1")(z if gamma is None else gamma * z)

    def mlp_branch(self, block: nn.Module, tokens: Tensor) -> Tensor:
        gamma = cast("Tensor | None", block.gamma_2)
        branch = _part(block, "mlp")(_part(block, "norm2")(tokens))
        return _part(block, "drop_path2")(branch if gamma is None else gamma * branch)

    def z_that_adds(self, block: nn.Module, added: Tensor) -> Tensor:
        return _unscaled(added, _part(block, "gamma_1"))

    def mlp_output_that_adds(self, block: nn.Module, added: Tensor) -> Tensor:
        return _unscaled(added, _part(block, "gamma_2"))


class BeitAdapter(GammaAdapter):
    """``Beit``'s block: the scores carry a relative position bias, the block's own, the model's, or both."""

    layer_scales = ()  # nothing stands in front of the blocks that could lead onto a narrower stream

    def own_bias(self, block: nn.Module) -> Tensor | None:
        attn = _part(block, "attn")
        return None if attn.relative_position_bias_table is None else attn._get_rel_pos_bias()

    def context_bias(self, block: nn.Module, context: Context, tokens: int) -> Tensor | None:
        return context.get("shared_rel_pos_bias")


def inputs_of(layer: nn.Module, run: Callable[[], object]) -> Tensor:
    """What a layer reads while something runs."""
    read: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    try:
        run()
    finally:
        handle.remove()
    return read[-1]


def _unscaled(added: Tensor, gamma: Tensor | None) -> Tensor:
    # A channel that is scaled to nothing cannot be led anywhere.
    return added if gamma is None else torch.where(gamma.abs() > 1e-6, added / gamma, torch.zeros_like(added))


def _keep_outputs_(linear: nn.Linear, kept: Tensor) -> None:
    _keep_entries_(linear, "weight", kept)
    _keep_entries_(linear, "bias", kept)
    linear.out_features = len(kept)


def _keep_inputs_(linear: nn.Linear, kept: Tensor) -> None:
    weight = linear.weight
    linear.weight = nn.Parameter(weight.detach()[:, kept].contiguous(), weight.requires_grad)
    linear.in_features = len(kept)


def _keep_normed_(norm: Any, kept: Tensor) -> None:
    """A norm over fewer channels; it takes its mean and variance over those that are left."""
    if isinstance(norm, nn.Module) and hasattr(norm, "normalized_shape"):
        _keep_entries_(norm, "weight", kept)
        _keep_entries_(norm, "bias", kept)
        cast(Any, norm).normalized_shape = (len(kept),)


def _keep_entries_(module: nn.Module, name: str, kept: Tensor) -> None:
    """Some entries of a parameter or buffer along its first axis, where there is one of that name."""
    found = getattr(module, name, None)
    if isinstance(found, nn.Parameter):
        setattr(module, name, nn.Parameter(found.detach()[kept].clone(), found.requires_grad))
    elif isinstance(found, Tensor):
        setattr(module, name, found[kept].clone())


def _channels(units: Tensor, width: int) -> Tensor:
    return (units[:, None] * width + torch.arange(width, device=units.device)).flatten()


def _part(module: nn.Module, name: str) -> Any:
    return getattr(module, name)


def _project(attn: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if getattr(attn, "qkv", None) is None:
        return tuple(_heads(attn, linear(tokens)) for linear in (attn.q_proj, attn.k_proj, attn.v_proj))  # pyright: ignore[reportReturnType]
    joined = attn.qkv(tokens)
    if getattr(attn, "q_bias", None) is not None:
        joined = joined + torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
    query, key, value = joined.chunk(3, dim=-1)
    return _heads(attn, query), _heads(attn, key), _heads(attn, value)


def _heads(attn: Any, joined: Tensor) -> Tensor:
    # Grouped-query attention has fewer key and value heads, all of the same width e = scale^-2.
    width = round(attn.scale**-2)
    return joined.unflatten(-1, (-1, width)).transpose(1, 2)


def _rotate(attn: Any, part: Tensor, rope: Tensor) -> Tensor:
    prefix = attn.num_prefix_tokens
    rotated = apply_rot_embed_cat(part[:, :, prefix:], rope, half=getattr(attn, "rotate_half", False))
    return torch.cat([part[:, :, :prefix], rotated], dim=2)
