"""What the check of an exported file found."""

from pydantic import Field

from vitslim.runtime import Precision
from vitslim.shapes import Result
from vitslim.targets.parity.tolerances import Tolerance


class ParityCheck(Result):
    """One artifact against its model at one batch size, in one form.

    ``form`` is ``as written``; ``inlined`` for the same file without local functions, as a runtime sees it that has
    none; ``rounded`` for half precision on a CPU, see ``vitslim.targets.onnx.rounding``. ``image_size`` is height and
    width.

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


class Departure(Result):
    """The first linear layer of a file whose output is not that of the model.

    Attributes:
        artifact: name of the file.
        before: the last layer before it that gives what the model gives; ``None`` where there is none.
        at: the layer; ``None`` where all agree, so that it is what follows ``before``.
        not_finite: NaN or infinity among its values.
        difference: the largest, as a share of the model's largest value there; ``None`` where values are not finite.
        largest: magnitude among the values that the model has there.
        remedy: what to do.
    """

    artifact: str
    before: str | None
    at: str | None = None
    not_finite: int = 0
    difference: float | None = None
    largest: float | None = None
    remedy: str

    def line(self) -> str:
        """In words."""
        after = f"after {self.before}" if self.before else "from the start"
        if self.at is None:
            return f"{self.artifact}: every linear layer, to {self.before}, gives what the model gives; {self.remedy}"
        how = (
            f"{self.not_finite} values are NaN or infinite"
            if self.difference is None
            else f"by {self.difference:.2g} of the model's largest value"
        )
        return f"{self.artifact} departs {after}, first seen at {self.at}: {how}; {self.remedy}"


class ParityReport(Result):
    """All checks of one exported file or of several, as they stand in parity.json.

    ``departures`` say where those that fail first depart from the model, if that was asked for.
    """

    passed: bool
    checks: list[ParityCheck]
    notes: list[str]
    departures: list[Departure] = Field(default_factory=list["Departure"])

    def failures(self) -> list[str]:
        """One sentence per failure, however many batches and forms have it in the same way."""
        where: dict[tuple[str, str], list[str]] = {}
        for check in self.checks:
            form = "" if check.form == "as written" else f" ({check.form})"
            for failure in check.failures:
                where.setdefault((check.artifact, failure), []).append(f"batch {check.batch}{form}")
        return [f"{file}, {' and '.join(dict.fromkeys(places))}: {one}" for (file, one), places in where.items()]
