"""One forward of a dense model with everything that analysis and warm start read from it."""

import copy
from collections.abc import Generator
from contextlib import contextmanager
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

    The blocks run as they are, with fused attention; the class row, when asked for, is computed apart.

    Args:
        attention: also compute A^[CLS] of every block.
        grad: keep the graph; by default nothing is differentiated.

    Raises:
        UnsupportedModelError: the model is not a dense one of a supported family.
    """
    adapter = adapter_for(model)
    blocks = tuple(cast("list[nn.Module]", list(model.blocks)))  # pyright: ignore[reportArgumentType]
    rows: dict[str, list[Any]] = {name: [] for name in ("inputs", "contexts", "read", "z", "outputs", "rows")}
    with _watching(blocks, adapter, rows, attention), torch.set_grad_enabled(grad):
        features = cast(Any, model).forward_features(images)
        logits = cast(Any, model).forward_head(features)
    return DenseTrace(
        adapter=adapter,
        layout=token_layout(model),
        blocks=blocks,
        block_inputs=rows["inputs"],
        attention_inputs=rows["read"],
        z=rows["z"],
        block_outputs=rows["outputs"],
        class_attention=rows["rows"],
        contexts=rows["contexts"],
        features=features,
        logits=logits[0] if isinstance(logits, tuple) else logits,
    )


@contextmanager
def _watching(
    blocks: tuple[nn.Module, ...], adapter: BlockAdapter, rows: dict[str, list[Any]], attention: bool
) -> Generator[None]:
    def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows["inputs"].append(args[0])
        rows["contexts"].append(kwargs)

    def leave(block: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        rows["outputs"].append(output)

    handles: list[Any] = []
    try:
        for block in blocks:
            handles.append(block.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(block.register_forward_hook(leave))
            handles.append(_watch_attention(block, adapter, rows, attention))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch_attention(block: nn.Module, adapter: BlockAdapter, rows: dict[str, list[Any]], attention: bool) -> Any:
    def attended(attn: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], z: Tensor) -> None:
        rows["read"].append(args[0])
        rows["z"].append(z)
        if attention:
            rows["rows"].append(adapter.class_attention(block, args[0], kwargs))

    return cast(nn.Module, block.attn).register_forward_hook(attended, with_kwargs=True)


def output_behind_blocks(
    model: nn.Module, images: Float[Tensor, "b c height width"], tokens: Float[Tensor, "b n d"]
) -> Float[Tensor, "b classes"]:
    """What the norm, pooling and head of a model make of ``tokens``, as if its blocks had given them.

    A second module that shares every part of the model but the blocks runs, so that the model itself is neither
    hooked nor changed, whatever happens in between. Patches are embedded again and thrown away: 2 % of a forward of
    ViT-S at 224 px, against knowing every family's tail.
    """
    tail = copy.copy(model)
    vars(tail)["_modules"] = dict(vars(model)["_modules"])
    cast(Any, tail).blocks = nn.Sequential(_Constant(tokens))
    return tail(images)


class _Constant(nn.Module):
    """Gives the same tokens whatever a model hands its blocks."""

    def __init__(self, tokens: Tensor) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, tokens: Tensor, **context: Any) -> Tensor:
        return self.tokens
