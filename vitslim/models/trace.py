"""One forward of a dense model with everything that analysis and warm start read from it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitslim.models.adapter import BlockAdapter, Context
from vitslim.models.families import adapter_for
from vitslim.models.layout import TokenLayout, token_layout


@dataclass(frozen=True)
class DenseTrace:
    """What a dense model computed for one batch; the lists have one entry per block, shapes (b, n, d).

    ``z`` is Z^MSA, the attention module's output; ``class_attention`` has shapes (b, h, n) and is empty unless asked
    for; ``contexts`` are the keyword arguments that timm gave each block.
    """

    adapter: BlockAdapter
    layout: TokenLayout
    blocks: tuple[nn.Module, ...]
    block_inputs: list[Tensor]
    attention_inputs: list[Tensor]
    z: list[Tensor]
    block_outputs: list[Tensor]
    class_attention: list[Tensor]
    contexts: list[Context]
    features: Tensor
    logits: Tensor


def trace(
    model: nn.Module, images: Float[Tensor, "b c height width"], *, attention: bool = False, grad: bool = False
) -> DenseTrace:
    """Run a dense model once and keep what every block read and gave.

    Attention is fused; the class row, when asked for, is computed apart. Nothing hooks or changes the model.

    Args:
        attention: also compute A^[CLS] of every block.
        grad: keep the graph; by default nothing is differentiated.

    Raises:
        UnsupportedModelError: the model is not a dense one of a supported family.
    """
    adapter = adapter_for(model)
    blocks = tuple(cast("list[nn.Module]", list(model.blocks)))  # pyright: ignore[reportArgumentType]
    watched = [_Watched(block, adapter, attention) for block in blocks]
    running = cast(Any, _with_blocks(model, watched))
    with torch.set_grad_enabled(grad):
        features = running.forward_features(images)
        logits = running.forward_head(features)
    return DenseTrace(
        adapter=adapter,
        layout=token_layout(model),
        blocks=blocks,
        block_inputs=[one.inputs for one in watched],
        attention_inputs=[one.read for one in watched],
        z=[one.z for one in watched],
        block_outputs=[one.outputs for one in watched],
        class_attention=[one.row for one in watched if one.row is not None],
        contexts=[one.context for one in watched],
        features=features,
        logits=logits[0] if isinstance(logits, tuple) else logits,
    )


class _Watched(nn.Module):
    """A block part by part, as a step of a trunk runs it, which keeps what goes through."""

    def __init__(self, block: nn.Module, adapter: BlockAdapter, attention: bool) -> None:
        super().__init__()
        self.block, self.adapter, self.attention = block, adapter, attention
        self.row: Tensor | None = None

    def forward(self, tokens: Tensor, **context: Any) -> Tensor:
        block, adapter = self.block, self.adapter
        self.inputs, self.context = tokens, context
        self.read = adapter.attention_input(block, tokens)
        self.z = adapter.attend(block, self.read, context)
        if self.attention:
            self.row = adapter.class_attention(block, self.read, context)
        self.outputs = adapter.add_mlp(block, adapter.add_attention(block, tokens, self.z))
        return self.outputs


def output_behind_blocks(
    model: nn.Module, images: Float[Tensor, "b c height width"], tokens: Float[Tensor, "b n d"]
) -> Float[Tensor, "b classes"]:
    """What the norm, pooling and head of a model make of ``tokens``, as if its blocks had given them.

    The model itself is neither hooked nor changed, whatever happens in between. Patches are embedded again and thrown
    away: 2 % of a forward of ViT-S at 224 px, against knowing every family's tail.
    """
    return _with_blocks(model, [_Constant(tokens)])(images)


def _with_blocks(model: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
    """A second module that shares every part of the model but the blocks."""
    other = copy.copy(model)
    vars(other)["_modules"] = {**vars(model)["_modules"], "blocks": nn.Sequential(*blocks)}
    return other


class _Constant(nn.Module):
    """Gives the same tokens whatever a model hands its blocks."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, tokens: Tensor, **context: Any) -> Tensor:
        return self.tokens
