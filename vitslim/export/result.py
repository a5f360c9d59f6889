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
    """An ONNX file that was written: what is in it, what the exporter said on the way.

    ``functions`` are the local functions whose nodes a plugin may take. ``types`` counts the nodes of each operator by
    element type, as read back from the graph. ``data_file`` holds the weights that one file cannot; ``size_bytes`` and
    ``sha256`` are the file's own, and the file knows the digest of its data. ``notes`` are for the user, ``log`` is
    what other libraries printed.
    """

    file: str
    precision: Precision
    opset: int
    batch: Literal["dynamic"] | int
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    operators: dict[str, int]
    functions: list[str]
    types: dict[str, dict[str, int]]
    optimized: bool
    size_bytes: int
    sha256: str
    data_file: str | None
    data_bytes: int
    metadata: dict[str, str]
    notes: list[str]
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
    """One artifact against its model at one batch size, in one form.

    ``form`` is ``as written``; ``inlined`` for the same file without local functions, as a runtime sees it that has
    none; ``rounded`` for bfloat16 on a CPU, see ``vitslim.export.bfloat16``. ``image_size`` is height and width.

    ``tolerance`` bounds ``max_abs`` and is ``limits.relative`` times ``scale``, the largest magnitude among the
    reference outputs. ``cosine`` is the least over the images. ``top1_agreement`` counts
    all images and is ``None`` for features; ``ties`` are the changed ones that ``limits.tie`` excuses.

    ``precision`` is the one that was promised. ``exceeding`` counts the images outside of ``limits``; where
    ``is_flipped_choice``, they are few and such as a token or key that was chosen otherwise leaves them, and pass.
    """

    artifact: str
    form: str
    backend: str
    precision: Precision
    batch: int
    image_size: tuple[int, int]
    images: int
    max_abs: float
    mean_abs: float
    cosine: float
    top1_agreement: float | None
    ties: int
    not_finite: int
    exceeding: int
    is_flipped_choice: bool
    scale: float
    tolerance: float
    limits: Tolerance
    passed: bool
    failures: list[str]

    @property
    def title(self) -> str:
        """What was compared, in a few words."""
        form = "" if self.form == "as written" else f", {self.form}"
        return f"{self.artifact} ({self.precision}, batch {self.batch}{form})"


class ParityReport(Result):
    """All checks of one artifact."""

    artifact: str
    passed: bool
    checks: list[ParityCheck]
    notes: list[str]

    def failures(self) -> list[str]:
        """One readable sentence per broken promise."""
        return [f"{check.title}: {failure}" for check in self.checks for failure in check.failures]
