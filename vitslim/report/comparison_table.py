"""The table of a comparison as data."""

from vitslim.bench.ratios import Verdict
from vitslim.report.comparison import Comparison, ComparisonEntry
from vitslim.report.documents import BenchRow
from vitslim.report.numbers import half_width
from vitslim.shapes import Result


class ComparisonSpeed(Result):
    """One timing of one model; the ratios are of the session that it was measured in, as in bench.json."""

    backend: str
    precision: str
    batch: int
    latency_ms_p50: float
    speedup_vs_dense: float | None
    verdict: Verdict | None  # None for the baseline
    speedup_vs_dense_torch: float | None
    other_image_size: bool


class ComparisonRow(Result):
    """One model; None is what was not measured."""

    model: str
    is_dense: bool
    images: int | None  # held-out ones
    top1: float | None  # share of images, 0..1
    top1_half_width: float | None  # half of the 95 % interval that this number of images allows
    top1_vs_teacher: float | None  # difference of shares
    agreement: float | None
    params: int | None
    macs: int | None
    speed: list[ComparisonSpeed]


def comparison_rows(comparison: Comparison) -> list[ComparisonRow]:
    """One row per model, dense ones first."""
    return [_row(entry) for entry in comparison.entries]


def _row(entry: ComparisonEntry) -> ComparisonRow:
    quality = entry.quality
    top1, reference = quality.top1 if quality else None, entry.teacher_top1
    return ComparisonRow(
        model=entry.name,
        is_dense=entry.is_dense,
        images=quality.images if quality else None,
        top1=top1,
        top1_half_width=half_width(top1, quality.images) if quality and top1 is not None else None,
        top1_vs_teacher=None if top1 is None or reference is None else top1 - reference,
        agreement=quality.agreement if quality else None,
        params=entry.parameters,
        macs=entry.macs,
        speed=[_speed(row) for row in entry.rows],
    )


def _speed(row: BenchRow) -> ComparisonSpeed:
    return ComparisonSpeed(**{name: getattr(row, name) for name in ComparisonSpeed.model_fields})
