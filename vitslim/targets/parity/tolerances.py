"""How far a file may lie from its model, by precision."""

from vitslim.runtime import Precision
from vitslim.shapes import Result


class Tolerance(Result):
    """How far an artifact may lie from its model.

    Args:
        relative: largest difference, as a share of the largest magnitude among the reference outputs.
        cosine: least cosine between the two outputs of one image.
        top1_agreement: least share of images that keep their best class.
        tie: images whose two best reference classes lie closer than this share of the scale are a tie: which of the
            two wins is rounding, so they are not counted as changed.
    """

    relative: float
    cosine: float
    top1_agreement: float
    tie: float


TOLERANCES: dict[Precision, Tolerance] = {
    # Two float32 backends differ in the order of their sums only: 4e-7 of the scale for DeiT-S with random weights
    # (torch 2.15 against onnxruntime 1.31), here fifty times that, for weights with outliers. A tanh for the exact
    # GELU moves the same model by 2.6e-5, a bias lost in one of its twelve blocks by 4e-2.
    "fp32": Tolerance(relative=2e-5, cosine=0.99999, top1_agreement=1.0, tie=2e-6),
    # float16 keeps 11 bits, 5e-4 per rounding; the same DeiT-S differs by 5e-4 of the scale, here twenty times that.
    "fp16": Tolerance(relative=1e-2, cosine=0.999, top1_agreement=0.98, tie=2e-3),
    # bfloat16 keeps 8 bits, eight times coarser: limits eight times those of fp16.
    "bf16": Tolerance(relative=8e-2, cosine=0.99, top1_agreement=0.95, tie=1.6e-2),
    # Eight bits for the whole range of a tensor: no limit by arithmetic, but what no working file exceeds. What INT8
    # costs is measured on many images when the file is written.
    "int8": Tolerance(relative=0.5, cosine=0.95, top1_agreement=0.8, tie=0.2),
}
