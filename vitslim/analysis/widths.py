"""What each block, and each neuron and head in it, does to the tokens; which blocks can go together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitslim.analysis.replacement import ChangeMeter
from vitslim.analysis.result import Measure
from vitslim.models import BlockAdapter, DenseTrace, adapter_for, output_behind_blocks, trace
from vitslim.trunk.unit_effects import unit_effects, unit_sums

PARTS = 64  # of a block's neurons: importance is given for so many equal parts
TRIED = 4  # blocks tried at each stage of the drop order, those with the least influence


@dataclass
class _Block:
    """The sums of one block over all tokens."""

    neurons: list[Tensor] = field(default_factory=list[Tensor])
    heads: list[Tensor] = field(default_factory=list[Tensor])
    turned: float = 0.0
    tokens: int = 0
    stream: float = 0.0
    added: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict[str, tuple[Tensor, Tensor]])

    def add(self, before: Tensor, between: Tensor, after: Tensor) -> None:
        self.turned += float((1 - F.cosine_similarity(before, after, dim=-1)).double().sum())
        self.tokens += before.shape[0] * before.shape[1]
        self.stream += float(after.double().square().sum())
        for name, branch in (("heads", between - before), ("neurons", after - between)):
            rows = branch.flatten(0, 1).double()
            sums, squares = self.added.get(name, (0.0, 0.0))
            self.added[name] = (sums + rows.sum(0), squares + rows.square().sum(0))

    def moved(self, name: str) -> float:
        """Mean square by which a branch moves the stream around its mean, relative to the stream."""
        sums, squares = self.added[name]
        return float((squares - sums.square() / self.tokens).sum()) / max(self.stream, 1e-30)


@dataclass(frozen=True)
class BlockFindings:
    """One entry per block.

    Attributes:
        influence: 1 minus the mean cosine between a token before and after the block.
        mlp_importance: of equal parts of its neurons, the highest first.
        heads_importance: of its heads, the highest first; heads that share keys and values count as one.
    """

    influence: list[float]
    mlp_importance: list[list[float]]
    heads_importance: list[list[float]]


@torch.no_grad()
def measure_blocks(model: nn.Module, batches: Iterable[Tensor]) -> BlockFindings:
    """Block influence, and the importance of neurons and heads.

    A unit's importance is the mean square by which it moves the residual stream around its mean, relative to the
    stream, so that units of different blocks can be compared.

    Source: Men et al. 2024, "ShortGPT", arXiv 2403.03853, equation 1, for the influence; the rest is ours.
    """
    adapter = adapter_for(model)
    found: list[_Block] = []
    for images in batches:
        with ExitStack() as hooks:
            blocks: list[nn.Module] = list(model.blocks)  # pyright: ignore[reportArgumentType]
            found = found or [_Block() for _ in blocks]
            for block, sums in zip(blocks, found, strict=True):
                hidden, heads = adapter.mlp_output(block).in_features, adapter.head_count(block)
                for layer, units, into in (
                    (adapter.mlp_output(block), hidden, sums.neurons),
                    (adapter.attention_output(block), heads, sums.heads),
                ):
                    handle = layer.register_forward_pre_hook(_adds(units, into))
                    hooks.callback(handle.remove)
            dense = trace(model, images)
        for index, sums in enumerate(found):
            before = dense.block_inputs[index]
            # BI_l = 1 - E_t [ x_l,t · x_{l+1},t / (|x_l,t| |x_{l+1},t|) ]
            sums.add(
                before, adapter.add_attention(dense.blocks[index], before, dense.z[index]), dense.block_outputs[index]
            )
    importance = [_importance(adapter, block, sums) for block, sums in zip(list(model.blocks), found, strict=True)]  # pyright: ignore
    return BlockFindings(
        influence=[sums.turned / sums.tokens for sums in found],
        mlp_importance=[neurons for neurons, _ in importance],
        heads_importance=[heads for _, heads in importance],
    )


def _adds(units: int, into: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        sums = unit_sums(args[0], units)
        into[:] = [into[0] + sums if into else sums]

    return add


def _importance(adapter: BlockAdapter, block: nn.Module, sums: _Block) -> tuple[list[float], list[float]]:
    neurons = unit_effects(sums.neurons[0], adapter.mlp_output(block).weight)
    heads = unit_effects(sums.heads[0], adapter.attention_output(block).weight)
    heads = heads.unflatten(0, (-1, adapter.heads_per_group(block))).sum(1)
    return _relative(neurons, sums.moved("neurons")), _relative(heads, sums.moved("heads"))


def _relative(effects: Tensor, moved: float) -> list[float]:
    """Means of equal parts, sorted; a whole block's sum is what its branch moves the stream by."""
    ordered = effects.sort(descending=True).values * (moved / effects.sum().clamp_min(1e-30))
    parts = ordered.tensor_split(min(PARTS, len(ordered)))
    return [float(f"{float(part.mean()):.4g}") for part in parts]


@torch.no_grad()
def drop_order(
    model: nn.Module,
    batches: Callable[[], Iterable[Tensor]],
    influence: Sequence[float],
    measure: Measure,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[int]:
    """Blocks in the order in which they can go: each time the one whose loss, beside those gone, changes least.

    Tried are those few that are left with the least influence; the first and the last block stay, and half of the
    blocks are ordered. A stage costs a forward and, for each of the four tried, the blocks behind the first that is
    gone: some three forwards of the images, so 18 for a model of 12 blocks.

    Args:
        batches: the images, from the start at each call.
        influence: of each block, ``BlockFindings.influence``.
        report: given the stages done and all stages.
    """
    depth = len(influence)
    gone: list[int] = []
    stages = min(depth // 2, max(depth - 2, 0))
    for stage in range(stages):
        left = [block for block in range(1, depth - 1) if block not in gone]
        tried = sorted(left, key=lambda block: influence[block])[:TRIED]
        meters = {block: ChangeMeter(measure) for block in tried}
        for images in batches():
            dense = trace(model, images)
            for block, meter in meters.items():
                meter.update(dense.logits, _output_without(model, images, dense, {*gone, block}))
        sizes = {block: meter.change().size for block, meter in meters.items()}
        known = {block: size for block, size in sizes.items() if size is not None}
        if not known:
            break
        gone.append(min(known, key=lambda block: known[block]))
        report(stage + 1, stages)
    return gone


def _output_without(model: nn.Module, images: Tensor, dense: DenseTrace, gone: set[int]) -> Tensor:
    first = min(gone)
    tokens = dense.block_inputs[first]
    for index in range(first, len(dense.blocks)):
        if index not in gone:
            tokens = dense.blocks[index](tokens, **dense.contexts[index])
    return output_behind_blocks(model, images, tokens)
