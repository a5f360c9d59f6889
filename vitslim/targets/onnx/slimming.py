"""Simplifying a graph, with the proof that its numbers stay."""

from typing import Any, cast

import torch

from vitslim.errors import CheckFailedError
from vitslim.runtime import Precision
from vitslim.targets.onnx.cpu_session import cpu_outputs
from vitslim.targets.onnx.graph import constants_as_tensors_

_RELATIVE: dict[Precision, float] = {
    # Folded constants may change the order of a sum; both graphs were bit-equal in everything that was tried (onnxslim
    # 0.1.98). A few roundings of each precision, far below what separates two models.
    "fp32": 2e-6,
    "fp16": 2e-3,
    "bf16": 1.6e-2,
}


def slimmed(model: Any) -> Any:
    """The graph as onnxslim simplifies it; local functions are kept as they are, the given graph too."""
    import onnx
    import onnxslim  # pyright: ignore[reportMissingTypeStubs]

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    # onnxslim (0.1.98) turns Constant nodes that hold plain numbers into float64 tensors, inside functions too: there
    # they are taken out of its reach, elsewhere written as tensors.
    del copy.functions[:]
    constants_as_tensors_(copy)
    slim = cast(Any, onnxslim.slim(copy))
    slim.functions.extend(model.functions)
    return slim


def require_same_numbers(before: Any, after: Any, images: torch.Tensor, precision: Precision) -> None:
    """Run both graphs on the same images and refuse a difference beyond rounding.

    Raises:
        CheckFailedError: with the difference and the way around; or the graph gives NaN or infinity by itself.
        MissingDependencyError: onnxruntime is not installed.
    """
    expected, given = cpu_outputs(before, images, precision), cpu_outputs(after, images, precision)
    if not bool(expected.isfinite().all()):
        raise CheckFailedError(
            f"the model itself gives NaN or infinity in {precision} for images of noise; nothing was written"
            + ("" if precision == "fp32" else "; export it in fp32 or bf16")
        )
    scale = max(float(expected.abs().max()), 1e-12)
    difference = float((given - expected).abs().max())
    # A difference of NaN is no difference below the limit.
    if not difference <= _RELATIVE[precision] * scale:
        raise CheckFailedError(
            f"onnxslim changed the numbers by {difference / scale:.2g} of their scale, allowed are "
            f"{_RELATIVE[precision]:g}; nothing was written; leave it out (--no-optimize, optimize=False)"
        )
