"""What an export wrote, what its check found."""

from typing import Literal

from vitslim.runtime import Precision
from vitslim.shapes import Result


class TensorInfo(Result):
    """An input or output as the file declares it; ``None`` in the shape takes any size."""

    name: str
    shape: list[int | None]
    dtype: str


class OnnxExport(Result):
    """An ONNX file that was written: what is in it, what the exporter said on the way."""

    file: str
    precision: Precision
    opset: int
    batch: Literal["dynamic"] | int
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    operators: dict[str, int]
    optimized: bool
    size_bytes: int
    sha256: str
    metadata: dict[str, str]
    log: list[str]


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


class ParityCheck(Result):
    """One artifact against its model at one batch size.

    ``tolerance`` bounds ``max_abs`` and is ``limits.relative`` times ``scale``, the largest magnitude among the
    reference outputs. ``cosine`` is the least over the images. ``top1_agreement`` counts
    all images and is ``None`` for features; ``ties`` are the changed ones that ``limits.tie`` excuses.
    """

    artifact: str
    precision: Precision
    batch: int
    images: int
    max_abs: float
    mean_abs: float
    cosine: float
    top1_agreement: float | None
    ties: int
    not_finite: int
    scale: float
    tolerance: float
    limits: Tolerance
    passed: bool
    failures: list[str]


class ParityReport(Result):
    """All checks of one artifact."""

    artifact: str
    passed: bool
    checks: list[ParityCheck]
    notes: list[str]

    def failures(self) -> list[str]:
        """One readable sentence per broken promise."""
        return [
            f"{check.artifact} ({check.precision}, batch {check.batch}): {failure}"
            for check in self.checks
            for failure in check.failures
        ]
