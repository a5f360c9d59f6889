"""What a model costs before any clock runs: multiply-accumulates, parameters."""

import copy
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitslim.kernels import op_macs
from vitslim.models import preprocessing
from vitslim.runtime.copying import uncompiled, without_hooks_

FLOPS_PER_MAC = 2


def count_macs(model: nn.Module, image_size: tuple[int, int] | None = None) -> int:
    """Multiply-accumulates of one image: every matrix product and convolution, the attention core included.

    Element-wise work, norms and softmax are not counted, as in the papers. The count runs one forward of a weightless
    copy on the meta device: nothing is computed, no memory taken, and a model on the meta device is as good.

    A custom op of vitslim counts what its definition needs: a sparse attention its kept pairs alone. Forms of the op
    that compute more and mask it away cost more time, which the clock shows.

    Args:
        model: stays as it is.
        image_size: (height, width) in pixels; the model's own by default.
    """
    height, width = image_size or preprocessing(model).image_size
    channels = preprocessing(model).channels
    images = torch.empty(1, channels, height, width, device="meta")
    counter = FlopCounterMode(display=False, custom_mapping=_fused_attention_on_cpu() | _custom_ops())
    weightless = weightless_copy(model)
    with torch.no_grad(), counter:
        weightless(images)
    return counter.get_total_flops() // FLOPS_PER_MAC


def count_parameters(model: nn.Module) -> int:
    """Live parameters; one that several places share counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def weightless_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters, buffers and other tensors lie on the meta device; no weight is copied."""
    model = uncompiled(model)
    # deepcopy takes what its memo already holds instead of copying it.
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in _tensors(module):
            memo[id(tensor)] = _on_meta(tensor)
    return without_hooks_(copy.deepcopy(model, memo)).eval().float()


def _tensors(module: nn.Module) -> list[Tensor]:
    plain = [value for value in vars(module).values() if isinstance(value, Tensor)]
    return [*module.parameters(recurse=False), *module.buffers(recurse=False), *plain]


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty


def _fused_attention_on_cpu() -> dict[Any, Any]:
    # torch's own table lacks the fused CPU kernel; without this line DeiT-S reads 4.24 instead of 4.60 GMAC whenever
    # a forward picks it.
    return {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}


def _custom_ops() -> dict[Any, Any]:
    def flops_of(macs: Callable[..., int]) -> Callable[..., int]:
        # The counter passes shapes in place of tensors, and the shape of the output by name.
        return lambda *arguments, **_: FLOPS_PER_MAC * macs(*arguments)

    return {op: flops_of(macs) for op, macs in op_macs().items()}


def _attention_flops(query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], *_: Any, **__: Any) -> int:
    # Q Kᵀ is (.., n, e) by (.., e, m), the mix is (.., n, m) by (.., m, f).
    rows = prod(query[:-1])
    return FLOPS_PER_MAC * rows * key[-2] * (query[-1] + value[-1])
