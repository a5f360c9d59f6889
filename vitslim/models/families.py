"""Which model classes vitslim can take, by the adapters that are registered for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from timm.layers import Attention, AttentionRope
from timm.models import beit, deit, eva, vision_transformer
from torch import nn

from vitslim.arguments import checked
from vitslim.errors import UnsupportedModelError
from vitslim.models.adapter import BeitAdapter, BlockAdapter, GammaAdapter, PostNormAdapter, ViTAdapter
from vitslim.registry import Registry

Adapter = TypeVar("Adapter", bound=type[BlockAdapter])


@dataclass(frozen=True)
class BlockKind:
    """What one adapter speaks to: see ``register_adapter``."""

    adapter: type[BlockAdapter]
    model: type[nn.Module]
    block: type[nn.Module]
    attention: tuple[type[nn.Module], ...]
    attention_parts: tuple[str, ...]
    family: str


ADAPTERS: Registry[BlockKind] = Registry("adapter", "vitslim.adapters")
"""By the names of model and block class, as ``Eva.EvaBlock``."""


@checked
def register_adapter(
    model: type[nn.Module],
    *,
    block: type[nn.Module],
    attention: type[nn.Module] | tuple[type[nn.Module], ...],
    attention_parts: tuple[str, ...] = ("norm1", "attn"),
    family: str | None = None,
) -> Callable[[Adapter], Adapter]:
    """Register the decorated ``BlockAdapter`` for a model class; subclasses are not taken for their parent.

    Other packages do so in a module that they name as an entry point of the group ``vitslim.adapters``.

    Args:
        model: with ``blocks``, ``patch_embed``, ``embed_dim``, ``num_prefix_tokens``, ``num_classes``, ``global_pool``,
            ``forward_features`` and ``forward_head``, as timm's vision transformers have them.
        block: class of all its blocks.
        attention: classes of a block's ``attn`` that the adapter knows.
        attention_parts: what of a block only its attention branch reads.
        family: name in lists; the model class's where not given.

    Raises:
        ConfigError: these model and block classes have an adapter.
    """
    kinds = attention if isinstance(attention, tuple) else (attention,)

    def register(adapter: Adapter) -> Adapter:
        kind = BlockKind(adapter, model, block, kinds, attention_parts, family or model.__name__)
        ADAPTERS.register(f"{model.__name__}.{block.__name__}", kind)
        return adapter

    return register


for _model in (vision_transformer.VisionTransformer, deit.VisionTransformerDistilled):
    for _block, _adapter, _parts in (
        (vision_transformer.Block, ViTAdapter, ("norm1", "attn")),
        (vision_transformer.ResPostBlock, PostNormAdapter, ("attn",)),
    ):
        register_adapter(_model, block=_block, attention=Attention, attention_parts=_parts, family="VisionTransformer")(
            _adapter
        )
_EVA = (eva.EvaAttention, AttentionRope)
register_adapter(eva.Eva, block=eva.EvaBlock, attention=_EVA)(GammaAdapter)
register_adapter(eva.Eva, block=eva.EvaBlockPostNorm, attention=_EVA, attention_parts=("attn",))(PostNormAdapter)
register_adapter(beit.Beit, block=beit.Block, attention=beit.Attention)(BeitAdapter)


def family_of(model: nn.Module) -> str:
    """The name under which the model's family is listed."""
    return next((kind.family for kind in _kinds_of(model)), type(model).__name__)


def adapter_for(model: nn.Module) -> BlockAdapter:
    """The adapter of a dense model.

    Raises:
        UnsupportedModelError: no adapter knows the model's class, its blocks or their attention; the message says
            which.
    """
    kinds = _kinds_of(model)
    if not kinds:
        families = ", ".join(dict.fromkeys(kind.family for _, kind in ADAPTERS.items()))
        raise UnsupportedModelError(
            f"{type(model).__name__} has no adapter; supported families: {families}. "
            "vitslim.register_adapter adds one (CONTRIBUTING.md)"
        )
    family = kinds[0].family
    if not isinstance(model.blocks, (nn.Sequential, nn.ModuleList)):
        raise UnsupportedModelError(
            f"this {family} has a {type(model.blocks).__name__} in place of its blocks; a dense model is wanted here"
        )
    blocks = list(model.blocks)
    if not blocks:
        raise UnsupportedModelError(f"{family} without blocks; there is nothing to convert")
    found = [_kind_of_block(index, block, kinds) for index, block in enumerate(blocks)]
    if len({kind.block for kind in found}) > 1:
        raise UnsupportedModelError(f"{family} mixes block types; vitslim takes trunks of one block type")
    if float(getattr(getattr(model, "patch_drop", None), "prob", 0.0) or 0.0) > 0.0:
        raise UnsupportedModelError(
            "patch_drop_rate > 0 removes patches at random in training, so that the grid is unknown; "
            "open the model with patch_drop_rate=0"
        )
    return found[0].adapter(
        family=family,
        prefix=int(model.num_prefix_tokens),  # pyright: ignore[reportArgumentType]
        has_class_token=getattr(model, "cls_token", None) is not None,
        context_per_block=bool(getattr(model, "rope_mixed", False)),
        attention_parts=found[0].attention_parts,
    )


def _kinds_of(model: nn.Module) -> list[BlockKind]:
    return [kind for _, kind in ADAPTERS.items() if kind.model is type(model)]


def _kind_of_block(index: int, block: nn.Module, kinds: list[BlockKind]) -> BlockKind:
    kind = next((kind for kind in kinds if kind.block is type(block)), None)
    if kind is None:
        raise UnsupportedModelError(
            f"{kinds[0].family}: block {index} is a {type(block).__name__}, whose branches are not separable; "
            f"supported: {', '.join(kind.block.__name__ for kind in kinds)}"
        )
    if type(block.attn) not in kind.attention:
        wanted = ", ".join(known.__name__ for known in kind.attention)
        raise UnsupportedModelError(
            f"{kind.family}: block {index} has {type(block.attn).__name__} attention, wanted {wanted}; "
            "no adapter speaks it yet"
        )
    return kind
