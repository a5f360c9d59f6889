"""Counts the activations that ``cost`` tells beforehand, in a forward on the meta device."""

from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from tests.variants import images_for
from vitslim.bench.cost import weightless_copy
from vitslim.trunk import trunk_of

PRODUCTS = {*flop_registry, torch.ops.vitslim.sparse_attention}


class Largest(TorchDispatchMode):
    """Elements of the largest output of a matrix product or convolution since the last ``begin``, and of all."""

    def __init__(self) -> None:
        super().__init__()
        self.recent = self.overall = 0

    def begin(self) -> None:
        self.recent = 0

    def take(self, output: Tensor) -> Tensor:
        self.recent, self.overall = max(self.recent, output.numel()), max(self.overall, output.numel())
        return output

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        """Fused attention, which on the meta device would come apart into products."""
        return self.take(query.new_empty(*query.shape[:-1], value.shape[-1]))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        return self.take(output) if func._overloadpacket in PRODUCTS else output


@torch.no_grad()
def peak_activations(model: nn.Module) -> tuple[list[int], int]:
    """Of each step of a converted model for one image, and of the whole model."""
    copied, largest = weightless_copy(model), Largest()
    steps: list[int] = []
    for step in trunk_of(copied).all_steps():
        step.register_forward_pre_hook(lambda *_: largest.begin())
        step.register_forward_hook(lambda *_: steps.append(largest.recent))
    with largest, patch.object(F, "scaled_dot_product_attention", largest.attend):
        copied(images_for(model, batch=1).to("meta"))
    return steps, largest.overall
