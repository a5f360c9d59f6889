"""How far a file may lie from its model, by precision."""

from torch import nn

from vitslim.export.result import Tolerance
from vitslim.runtime import Precision
from vitslim.trunk import is_converted, trunk_of

TOLERANCES: dict[Precision, Tolerance] = {
    # Two float32 backends differ in the order of their sums only: 4e-7 of the scale for DeiT-S with random weights
    # (torch 2.15 against onnxruntime 1.31), here fifty times that, for weights with outliers. A tanh for the exact
    # GELU moves the same model by 2.6e-5, a bias lost in one of its twelve blocks by 4e-2.
    "fp32": Tolerance(relative=2e-5, cosine=0.99999, top1_agreement=1.0, tie=2e-6),
    # float16 keeps 11 bits, 5e-4 per rounding; the same DeiT-S differs by 5e-4 of the scale, here twenty times that.
    "fp16": Tolerance(relative=1e-2, cosine=0.999, top1_agreement=0.98, tie=2e-3),
    # bfloat16 keeps 8 bits, eight times coarser: limits eight times those of fp16.
    "bf16": Tolerance(relative=8e-2, cosine=0.99, top1_agreement=0.95, tie=1.6e-2),
}

# What stands at the edge of a choice is chosen in one precision and not in the other. That moves the outputs of a few
# images by more than rounding: one of 32 by 1.2 % of the scale, where the others stay below 0.3 % (the built-in
# Sparsifiner student in fp16). Cosine and top-1 hold as for all models.
_CHOOSING = 3


def tolerance_for(model: nn.Module, precision: Precision) -> Tolerance:
    """How far a file of this model may lie from it: ``TOLERANCES``, wider in half precision where the model chooses."""
    limits = TOLERANCES[precision]
    if precision == "fp32" or not is_converted(model) or not trunk_of(model).chooses:
        return limits
    return limits.model_copy(update={"relative": _CHOOSING * limits.relative})
