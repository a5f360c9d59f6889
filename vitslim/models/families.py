"""Which timm models vitslim can take, and the reason where it cannot."""

from dataclasses import dataclass

from timm.layers import Attention, AttentionRope
from timm.models import beit, deit, eva, vision_transformer
from torch import nn

from vitslim.errors import UnsupportedModelError
from vitslim.models.adapter import BeitAdapter, BlockAdapter, GammaAdapter, PostNormAdapter, ViTAdapter


@dataclass(frozen=True)
class _Kind:
    adapter: type[BlockAdapter]
    block: type[nn.Module]
    attention: tuple[type[nn.Module], ...]
    attention_parts: tuple[str, ...] = ("norm1", "attn")


_FAMILIES: dict[type[nn.Module], tuple[str, tuple[_Kind, ...]]] = {
    vision_transformer.VisionTransformer: (
        "VisionTransformer",
        (
            _Kind(ViTAdapter, vision_transformer.Block, (Attention,)),
            _Kind(PostNormAdapter, vision_transformer.ResPostBlock, (Attention,), ("attn",)),
        ),
    ),
    eva.Eva: (
        "Eva",
        (
            _Kind(GammaAdapter, eva.EvaBlock, (eva.EvaAttention, AttentionRope)),
            _Kind(PostNormAdapter, eva.EvaBlockPostNorm, (eva.EvaAttention, AttentionRope), ("attn",)),
        ),
    ),
    beit.Beit: ("Beit", (_Kind(BeitAdapter, beit.Block, (beit.Attention,)),)),
}
_FAMILIES[deit.VisionTransformerDistilled] = _FAMILIES[vision_transformer.VisionTransformer]

_SUPPORTED = "VisionTransformer (also distilled and hybrid), Eva (EVA-02, DINOv3, PE), Beit"


def family_of(model: nn.Module) -> str:
    """The name under which the model's family is listed."""
    known = _FAMILIES.get(type(model))
    return known[0] if known else type(model).__name__


def adapter_for(model: nn.Module) -> BlockAdapter:
    """The adapter of a dense timm model.

    Raises:
        UnsupportedModelError: no adapter knows the model's class, its blocks or their attention; the message says
            which.
    """
    known = _FAMILIES.get(type(model))
    if known is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} has no adapter; supported families: {_SUPPORTED}. "
            "CONTRIBUTING.md tells how to add one"
        )
    family, kinds = known
    if not isinstance(model.blocks, (nn.Sequential, nn.ModuleList)):
        raise UnsupportedModelError(
            f"this {family} has a {type(model.blocks).__name__} in place of its blocks; a dense model is wanted here"
        )
    blocks = list(model.blocks)
    if not blocks:
        raise UnsupportedModelError(f"{family} without blocks; there is nothing to convert")
    for index, block in enumerate(blocks):
        _check_block(family, index, block, kinds)
    kind = _kind_of(blocks[0], kinds)
    if any(type(block) is not kind.block for block in blocks):
        raise UnsupportedModelError(f"{family} mixes block types; vitslim takes trunks of one block type")
    _check_patch_dropout(model)
    return kind.adapter(
        family=family,
        prefix=int(model.num_prefix_tokens),  # pyright: ignore[reportArgumentType]
        has_class_token=getattr(model, "cls_token", None) is not None,
        context_per_block=bool(getattr(model, "rope_mixed", False)),
        attention_parts=kind.attention_parts,
    )


def _kind_of(block: nn.Module, kinds: tuple[_Kind, ...]) -> _Kind:
    return next(kind for kind in kinds if type(block) is kind.block)


def _check_block(family: str, index: int, block: nn.Module, kinds: tuple[_Kind, ...]) -> None:
    names = ", ".join(kind.block.__name__ for kind in kinds)
    if all(type(block) is not kind.block for kind in kinds):
        raise UnsupportedModelError(
            f"{family}: block {index} is a {type(block).__name__}, whose branches are not separable; supported: {names}"
        )
    attention = type(block.attn)
    allowed = _kind_of(block, kinds).attention
    if attention not in allowed:
        wanted = ", ".join(kind.__name__ for kind in allowed)
        raise UnsupportedModelError(
            f"{family}: block {index} has {attention.__name__} attention, wanted {wanted}; no adapter speaks it yet"
        )


def _check_patch_dropout(model: nn.Module) -> None:
    dropout = getattr(model, "patch_drop", None)
    if float(getattr(dropout, "prob", 0.0) or 0.0) > 0.0:
        raise UnsupportedModelError(
            "patch_drop_rate > 0 removes patches at random in training, so that the grid is unknown; "
            "open the model with patch_drop_rate=0"
        )
