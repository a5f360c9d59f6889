"""What the benchmark suite measures and finds, as it is written to its JSON files.

Names of fields are those of files that are committed; ``piece`` is a case, ``aims`` are the targets, ``tries`` the
attempts and ``ceilings`` the measured peaks.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, PositiveInt

from vitslim.bench.kernels import KernelRow, KernelSkip
from vitslim.bench.result import BenchRow, Skipped
from vitslim.bench.roofline import MeasuredPeaks
from vitslim.bench.session import Backend
from vitslim.runtime import Precision
from vitslim.shapes import Config, Result

Kind = Literal["dense", "method", "pair", "baseline"]
Setting = tuple[str, int, str, str, int]  # model, image size, backend, precision, batch
Status = Literal["measured", "unavailable", "out of memory", "failed", "crashed", "too long"]

DENSE = "dense"
SMALLER = "smaller-sibling"
SUITE_FILE = "suite.json"
ATTEMPTS = 2  # at a case that is not done in time; what the first one compiled is there for the second


class Case(Config):
    """What is measured in one process: one model at one image size, precision and backend; or kernels alone.

    All competitors of a case are timed in the same rounds, so that their ratios are of one run.
    """

    kind: Literal["models", "kernels"] = "models"
    model: str = "-"  # name in the preset; kernels have none
    image_size: int = 0  # pixels; 0: the model's own
    precision: Precision = "fp32"
    backend: Backend = "torch"
    batches: tuple[PositiveInt, ...] = (1,)
    competitors: tuple[str, ...] = ()  # beside dense
    tokens: tuple[PositiveInt, ...] = ()  # kernels alone

    @property
    def name(self) -> str:
        """Of its file and its row in a list."""
        batches = "b" + "+".join(map(str, self.batches))
        if self.kind == "kernels":
            return f"kernels-{self.precision}-{batches}"
        size = [str(self.image_size)] if self.image_size else []
        return "-".join([re.sub(r"[^\w.]+", "_", self.model), *size, self.precision, self.backend, batches])

    @property
    def settings(self) -> list[Setting]:
        """One for each batch size."""
        return [(self.model, self.image_size, self.backend, self.precision, batch) for batch in self.batches]


class GainTarget(Config):
    """A gain over dense to be reached: by the best of some competitors in one setting, or by a kernel."""

    what: str  # in words
    at_least: float = Field(gt=0)  # dense over the model
    of: Literal["speed", "weights", "memory"] = "speed"  # a kernel's is speed
    precision: Precision
    model: str = "-"
    image_size: int = 0
    backend: Backend = "compiled-graph"
    batch: PositiveInt = 1
    competitors: tuple[str, ...] = ()
    kernel: str = ""  # its name, instead of competitors
    tokens: int = 0  # of the kernel
    max_loss: float | None = None  # points of top-1 below the fine-tuned dense model; where accuracy is measured too

    @property
    def setting(self) -> Setting:
        """That of the competitors' rows."""
        return self.model, self.image_size, self.backend, self.precision, self.batch

    def is_measured_by(self, case: Case) -> bool:
        """Whether a case says something about it."""
        if self.kernel:
            timed = (case.kind, case.precision) == ("kernels", self.precision)
            return timed and self.tokens in case.tokens and self.batch in case.batches
        return self.setting in case.settings and bool({*self.competitors} & {*case.competitors})


class SuiteRow(BenchRow):
    """A row of a case: ``model`` is the competitor, ``base`` the model it competes with at ``size`` pixels.

    The roofline figures are ``None`` for training steps, whose traffic is not counted.
    """

    base: str
    size: int
    kind: Kind
    tflops: float | None
    gbytes_s: float | None
    intensity: float | None
    roofline_share: float | None


class Outcome(Result):
    """How a case of a benchmark ended, as it is kept in a file of its own."""

    digest: str  # of the case, its settings, the versions, the code and the hardware
    status: Status
    reason: str | None = None
    seconds: float
    tries: int = 1  # in a row that were too long, this one counted
    environment: dict[str, Any] = Field(default_factory=dict)


class CaseResult(Outcome):
    """What one case of the suite gave."""

    piece: Case
    ceilings: MeasuredPeaks | None = None
    rows: list[SuiteRow] = Field(default_factory=list[SuiteRow])
    kernel_rows: list[KernelRow] = Field(default_factory=list[KernelRow])
    skipped: list[Skipped] = Field(default_factory=list[Skipped])
    kernel_skips: list[KernelSkip] = Field(default_factory=list[KernelSkip])
    notes: list[str] = Field(default_factory=list[str])


class SuiteReport(Result):
    """suite.json: all cases that were measured with the present settings, and what is left."""

    preset: str
    quick: bool
    command: str
    settings: dict[str, Any]
    environment: dict[str, Any]  # of the last case; versions and hardware are the same in all
    pieces: list[CaseResult]
    left: list[str]  # names of the cases that are not measured yet
    aims: list[GainTarget] = Field(default_factory=list[GainTarget])

    @property
    def total(self) -> int:
        """How many cases the preset has."""
        return len({*self.left, *(one.piece.name for one in self.pieces)})

    @property
    def too_long(self) -> list[str]:
        """Names of the cases that are left and that another call with no more time would not measure either."""
        return [one.piece.name for one in self.pieces if one.status == "too long" and one.tries >= ATTEMPTS]

    @property
    def not_begun(self) -> list[str]:
        """Names of the cases that are left and were not attempted."""
        attempted = {one.piece.name for one in self.pieces}
        return [name for name in self.left if name not in attempted]

    @property
    def rows(self) -> list[SuiteRow]:
        """The rows of all cases, in the preset's order."""
        return [row for case in self.pieces for row in case.rows]

    @property
    def kernel_rows(self) -> list[KernelRow]:
        """The kernels' rows, in the preset's order."""
        return [row for case in self.pieces for row in case.kernel_rows]
