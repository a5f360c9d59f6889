"""What the benchmarks of many cases measure and find, as it is written to suite.json."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveInt, model_validator

from vitslim.bench.kernels import KernelRow
from vitslim.bench.result import BenchRow, Skipped
from vitslim.bench.roofline import MeasuredPeaks
from vitslim.bench.session import Backend
from vitslim.kernels.dispatch import Family, Measured, TritonMode
from vitslim.runtime import Precision
from vitslim.runtime.runner import DTYPES
from vitslim.shapes import Config, Result

Kind = Literal["dense", "method", "pair", "baseline"]
Status = Literal["measured", "unavailable", "out of memory", "failed", "crashed", "too long"]

Benchmark = Literal["suite", "accuracy"]

REACHABLE = 0.95
"""How much of the ratio of multiply-accumulates can become speed: norms, sums and copies are not saved."""

TEACHER = "teacher"
FINE_TUNED = "dense-finetuned"
"""The fine-tuned baseline: the teacher with the students' budget."""
DENSE = "dense"
SMALLER = "smaller-sibling"
SUITE_FILE = "suite.json"


class Case(Config):
    """What is measured in one process: one model in one setting with all its competitors; or kernels alone.

    The competitors are timed in the same rounds, so that their ratios are of one run. With ``also``, dense and all
    competitors run in further precisions too, in those same rounds; ratios are to dense in ``precision``. With
    ``triton`` each competitor runs once in each of these modes.
    """

    model: str = "kernels"  # name in the preset
    image_size: int = 0  # pixels
    precision: Precision = "fp32"
    also: tuple[Precision, ...] = ()
    backend: Backend = "torch"
    batch: PositiveInt = 1
    competitors: tuple[str, ...] = ()  # beside dense
    triton: tuple[TritonMode, ...] = ()
    tokens: tuple[PositiveInt, ...] = ()  # of kernels; models have none

    @property
    def name(self) -> str:
        """Of its file and its row in a list."""
        precisions = "+".join((self.precision, *self.also))
        setting = [precisions] if self.tokens else [str(self.image_size), precisions, self.backend]
        triton = [f"triton{''.join(self.triton)}"] if self.triton else []
        return "-".join([self.model.replace("/", "_"), *setting, f"b{self.batch}", *triton])


class GainTarget(Config):
    """A gain over dense to be reached: by the best of some competitors in one setting, or by a kernel."""

    what: str  # in words
    at_least: float | None = Field(default=None, gt=0)  # dense over the model; ``None``: ``REACHABLE`` of that in MACs
    of: Literal["speed", "weights", "memory"] = "speed"  # a kernel's is speed
    precision: Precision  # of the competitors; where it is one of ``also``, the gain is over dense in the case's own
    model: str = ""
    image_size: int = 0
    backend: Backend = "compiled-graph"
    batch: PositiveInt = 1
    competitors: tuple[str, ...] = ()
    kernel: str = ""  # its name, instead of competitors
    tokens: int = 0  # of the kernel
    max_loss: float | None = None  # points of top-1 below the fine-tuned baseline; where accuracy is measured too

    @model_validator(mode="after")
    def _has_a_ratio(self) -> GainTarget:
        if self.at_least is None and (self.of != "speed" or self.kernel):
            raise ValueError("at_least is wanted of weights, memory and kernels, which have no multiply-accumulates")
        return self

    def is_measured_by(self, case: Case) -> bool:
        """Whether a case says something about it."""
        if self.batch != case.batch or case.triton or self.precision not in (case.also or (case.precision,)):
            return False
        if self.kernel:
            return self.tokens in case.tokens
        same = (self.model, self.image_size, self.backend) == (case.model, case.image_size, case.backend)
        return same and not {*self.competitors}.isdisjoint(case.competitors)


class SuiteRow(BenchRow):
    """A row of a case; the roofline's figures are ``None`` for training steps, whose traffic is not counted, and in
    precisions other than the case's own.
    """

    kind: Kind
    triton: TritonMode | None = None  # in which it ran, where its case has several
    kernels: Family | None = None  # of ours that it can run on
    tokens: int | None = None  # of the model's input, where kernels are named
    tflops: float | None
    gbytes_s: float | None
    roofline_share: float | None


class Outcome(Result):
    """How a case or a training ended, as it is kept in a file of its own."""

    digest: str  # of all that it depends on: settings, versions, code, hardware
    status: Status
    reason: str | None = None
    seconds: float
    environment: dict[str, Any] = Field(default_factory=dict)


class CaseResult(Outcome):
    """What one case gave."""

    case: Case
    peaks: MeasuredPeaks | None = None
    rows: list[SuiteRow] = Field(default_factory=list[SuiteRow])
    kernel_rows: list[KernelRow] = Field(default_factory=list[KernelRow])
    skipped: list[Skipped] = Field(default_factory=list[Skipped])
    notes: list[str] = Field(default_factory=list[str])

    def row(self, model: str, precision: Precision | None = None) -> SuiteRow | None:
        """That of a competitor, or of dense; in the case's own precision by default."""
        wanted = (model, precision or self.case.precision)
        return next((row for row in self.rows if (row.model, row.precision) == wanted), None)


class AccuracyRow(Result):
    """Held-out accuracy and cost of one trained model."""

    kind: Kind
    top1: float  # share of held-out images, 0..1
    agreement: float | None  # share of images with the teacher's class
    images: int  # held-out ones
    params: int
    macs: int
    steps: int  # of the last training


class TrainedModel(Outcome):
    """What the training of one model gave."""

    model: str
    row: AccuracyRow | None = None
    plan: dict[str, Any] | None = None  # of a converted one

    @property
    def timed_as(self) -> str:
        """The name of its rows of speed; the teacher and the fine-tuned baseline are the same network as dense."""
        return DENSE if self.model in (TEACHER, FINE_TUNED) else self.model


class SuiteReport(Result):
    """suite.json: all cases that were measured with the present settings, and what is left."""

    benchmark: Benchmark
    preset: str
    quick: bool
    command: str
    settings: dict[str, Any]
    trained: list[TrainedModel]  # of the accuracy benchmark, the teacher first
    cases: list[CaseResult]
    left: list[str]  # not trained or measured yet; what was stopped is in ``trained`` or ``cases`` too
    targets: list[GainTarget]

    @property
    def total(self) -> int:
        """How many trainings and cases the preset has."""
        return len({*self.left, *self.statuses})

    @property
    def statuses(self) -> dict[str, Status]:
        """How those that ended did, by name."""
        return {name: one.status for name, one in self.outcomes.items()}

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """What ended, by name."""
        return {**{one.model: one for one in self.trained}, **{one.case.name: one for one in self.cases}}

    @property
    def environment(self) -> dict[str, Any]:
        """Of the last one; versions and hardware are the same in all."""
        return next((one.environment for one in reversed(self.outcomes.values()) if one.environment), {})

    @property
    def accuracy(self) -> dict[str, AccuracyRow]:
        """The rows of all trained models, by their names."""
        return {one.model: one.row for one in self.trained if one.row is not None}


def triton_measurements(report: SuiteReport) -> list[Measured]:
    """What cases with and without Triton kernels say, as ``auto`` reads it: of each size what its worst model gains."""
    if not report.environment.get("gpu"):
        return []
    capability = report.environment["gpu"][0]["compute_capability"]
    found: dict[tuple[Family, str, int, int], float] = {}
    for one in report.cases:
        times = {(row.model, row.triton): row.latency_ms_p50 for row in one.rows}
        for row in one.rows:
            without = times.get((row.model, "0"))
            if row.triton != "1" or without is None or row.kernels is None or row.tokens is None:
                continue
            key = (row.kernels, str(DTYPES[row.precision]).removeprefix("torch."), row.batch, row.tokens)
            found[key] = min(without / row.latency_ms_p50, found.get(key, float("inf")))
    return [
        Measured(family, capability, dtype, images, tokens, speedup)
        for (family, dtype, images, tokens), speedup in found.items()
    ]
