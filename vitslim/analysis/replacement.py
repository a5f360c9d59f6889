"""What the model's output loses when attention outputs are made from earlier ones instead of computed."""

from collections.abc import Callable, Collection, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitslim.analysis.linear_map import LinearMap
from vitslim.analysis.result import Change, Kind, Measure
from vitslim.models import DenseTrace, output_behind_blocks

StandIn = Callable[[Tensor], Tensor]
"""Makes one layer's attention output from the one before."""


def output_with_replaced(
    model: nn.Module, images: Float[Tensor, "b c height width"], dense: DenseTrace, stand_ins: dict[int, StandIn]
) -> Float[Tensor, "b classes"]:
    """The model's output when the given layers' attention outputs come from their predecessors' instead.

    Layers below the first replaced one are as in ``dense`` and are not run again: one replaced layer costs the blocks
    behind it, on average half a forward (0.53 of one on ViT-S, one CPU thread). A run of replaced layers chains: each
    reads what replaced the one before. The norm, the pooling and the head are the model's own.

    Args:
        dense: the trace of the same images.
        stand_ins: replaced layer (1 or higher) → function from the former attention output to this one.
    """
    adapter = dense.adapter
    first = min(stand_ins)
    tokens, z = dense.block_inputs[first], dense.z[first - 1]
    last = max(stand_ins)
    for layer in range(first, len(dense.blocks)):
        block, context = dense.blocks[layer], dense.contexts[layer]
        if layer > last:
            tokens = block(tokens, **context)
            continue
        if layer in stand_ins:
            z = stand_ins[layer](z)
        else:
            z = adapter.attend(block, adapter.attention_input(block, tokens), context)
        tokens = adapter.add_mlp(block, adapter.add_attention(block, tokens, z))
    return output_behind_blocks(model, images, tokens)


class ChangeMeter:
    """Mean change of the output over the images of a stream.

    Args:
        measure: ``kl`` for class scores, ``feature_change`` for pooled features.
    """

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self.images = 0
        self.sums = torch.zeros(2, dtype=torch.float64)

    def update(self, dense: Float[Tensor, "b classes"], replaced: Float[Tensor, "b classes"]) -> None:
        """Add one minibatch of outputs of the dense and of the changed model."""
        dense, replaced = (output.detach().cpu().double() for output in (dense, replaced))
        if self.measure == "kl":
            # KL(p ‖ q) = Σ p (log p - log q), nats
            log_p, log_q = dense.log_softmax(dim=1), replaced.log_softmax(dim=1)
            change = (log_p.exp() * (log_p - log_q)).sum(dim=1)
            agreement = (dense.argmax(dim=1) == replaced.argmax(dim=1)).double()
        else:
            change = (replaced - dense).norm(dim=1) / dense.norm(dim=1)
            agreement = torch.zeros_like(change)
        self.sums += torch.stack([change.sum(), agreement.sum()])
        self.images += len(dense)

    def change(self) -> Change:
        """The means so far."""
        mean, agreement = (self.sums / max(self.images, 1)).tolist()
        size = mean if torch.isfinite(self.sums[0]) and self.images else None
        if self.measure == "feature_change":
            return Change(feature_change=size)
        return Change(kl=size, top1_agreement=agreement if self.images else None)


def stand_ins_for(layers: Collection[int], kind: Kind, maps: Sequence[LinearMap | None]) -> dict[int, StandIn]:
    """The functions that ``output_with_replaced`` takes: identity reuse, or each layer's linear map."""
    if kind == "identity":
        return dict.fromkeys(layers, _reuse)
    return {layer: cast(LinearMap, maps[layer]) for layer in layers}


def _reuse(z: Tensor) -> Tensor:
    return z
