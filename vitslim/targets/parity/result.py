"""What the check of an exported file found."""

from vitslim.runtime import Precision
from vitslim.shapes import Result
from vitslim.targets.parity.tolerances import Tolerance


class ParityCheck(Result):
    """One artifact against its model at one batch size, in one form.

    ``form`` is ``as written``; ``inlined`` for the same file without local functions, as a runtime sees it that has
    none; ``rounded`` for bfloat16 on a CPU, see ``vitslim.targets.onnx.bfloat16``. ``image_size`` is height and width.

    ``tolerance`` bounds ``max_abs`` and is ``limits.relative`` times ``scale``, the largest magnitude among the
    reference outputs. ``cosine`` is the least over the images. ``top1_agreement`` counts
    all images and is ``None`` for features; ``ties`` are the changed ones that ``limits.tie`` excuses.

    ``precision`` is the one that is guaranteed. ``exceeding`` counts the images outside of ``limits``; where
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
    chosen_otherwise: int = 0
    scale: float
    tolerance: float
    limits: Tolerance
    passed: bool
    failures: list[str]


class ParityReport(Result):
    """All checks of one exported file or of several, as they stand in parity.json."""

    passed: bool
    checks: list[ParityCheck]
    notes: list[str]

    def failures(self) -> list[str]:
        """One sentence per failure, however many batches and forms have it in the same way."""
        where: dict[tuple[str, str], list[str]] = {}
        for check in self.checks:
            form = "" if check.form == "as written" else f" ({check.form})"
            for failure in check.failures:
                where.setdefault((check.artifact, failure), []).append(f"batch {check.batch}{form}")
        return [f"{file}, {' and '.join(dict.fromkeys(places))}: {one}" for (file, one), places in where.items()]
