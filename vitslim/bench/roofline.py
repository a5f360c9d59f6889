"""How a measured time compares with what the arithmetic units and the memory of this machine could do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vitslim.bench.cost import weightless_copy
from vitslim.kernels import op_macs
from vitslim.models import preprocessing
from vitslim.shapes import Result


class MeasuredPeaks(Result):
    """What this machine reached in the same run: a large matrix product, a large copy.

    ``gbytes_s`` counts bytes read and bytes written.
    """

    tflops: float
    gbytes_s: float
    gemm_size: int  # n of the n × n × n product
    copy_mib: float  # of the tensor that was copied


class Traffic(Result):
    """Numbers that the counted operators of one forward read and write, whatever their width in bytes.

    Each matrix product, convolution and attention reads its operands and writes its result once; everything between
    them is taken to be fused into one of them. A forward cannot move less without fusing across products, as the
    kernel of SReT's linear maps does. A matrix that several steps share is counted for each of them, whether memory or
    the L2 cache gives it: such a model's share of what memory allows may come out too high, even above 1.
    """

    weights: int  # numbers read once per batch
    per_image: int  # numbers read and written for every image

    def gbytes(self, batch: int, width: int) -> float:
        """Gigabytes of one batch, with numbers of ``width`` bytes."""
        return (self.weights + batch * self.per_image) * width / 1e9


class RooflinePoint(Result):
    """One measured time on the roofline."""

    tflops: float  # achieved
    gbytes_s: float  # achieved, of the traffic that cannot be avoided
    share: float  # achieved over what the peaks allow


def roofline_point(flops: float, gbytes: float, latency_ms: float, peaks: MeasuredPeaks) -> RooflinePoint:
    """The point of ``flops`` operations on ``gbytes`` of data in ``latency_ms``.

    Source: Williams, Waterman and Patterson 2009, "Roofline", Communications of the ACM 52(4).
    """
    seconds = latency_ms / 1e3
    # min(peak arithmetic, intensity × peak bandwidth), as the time of the slower of both
    fastest = max(flops / (peaks.tflops * 1e12), gbytes / peaks.gbytes_s)
    return RooflinePoint(tflops=flops / seconds / 1e12, gbytes_s=gbytes / seconds, share=fastest / seconds)


def count_traffic(model: nn.Module) -> Traffic:
    """The numbers that one forward moves, counted on a weightless copy at the model's own image size."""
    wants = preprocessing(model)
    weightless = weightless_copy(model)

    def moved(batch: int) -> int:
        counter = _MovedNumbers()
        with torch.no_grad(), _WholeAttention(counter), counter:
            weightless(torch.empty(batch, wants.channels, *wants.image_size, device="meta"))
        return counter.total

    # moved(b) = weights + b · per image
    one, two = moved(1), moved(2)
    return Traffic(weights=2 * one - two, per_image=two - one)


class _MovedNumbers(TorchDispatchMode):
    """Adds up the sizes of what counted operators read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.is_paused = False
        self._counted = {*flop_registry, *op_macs()}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        result = func(*args, **given)
        if not self.is_paused and func._overloadpacket in self._counted:
            self.total += numbers_in((args, given)) + numbers_in(result)
        return result


class _WholeAttention(TorchFunctionMode):
    """Counts fused attention as one operator: on the meta device torch spells it out, scores and all."""

    def __init__(self, counter: _MovedNumbers) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **given)
        self._counter.is_paused = True
        try:
            result = func(*args, **given)
        finally:
            self._counter.is_paused = False
        self._counter.total += numbers_in((args, given)) + numbers_in(result)
        return result


def numbers_in(value: Any) -> int:
    """The elements of all tensors in a nested value."""
    if isinstance(value, Tensor):
        return value.numel()
    if isinstance(value, Mapping):
        return sum(numbers_in(entry) for entry in value.values())
    if isinstance(value, list | tuple):
        return sum(numbers_in(entry) for entry in value)
    return 0
