"""Collecting several students of one teacher, to be shown side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitslim.errors import CheckpointError
from vitslim.report.documents import Bench, BenchRow, Evaluation
from vitslim.report.parts import ReportParts, has_parts, read_bench, read_parts
from vitslim.report.sections.headline import conversion_sentence

TEACHER, CONTROL = "dense teacher", "dense control"


@dataclass(frozen=True)
class ComparisonEntry:
    """One model of a comparison.

    Args:
        name: how the page calls it.
        quality: its evaluation; None when it was not evaluated.
        rows: its timings, each with its ratio against the dense model of the same run.
        note: one sentence on what it is.
        is_dense: whether it is a dense model, against which the others are held.
        parameters: of the model that was evaluated; the timings may be of a larger one of its kind.
    """

    name: str
    quality: Evaluation | None = None
    rows: Sequence[BenchRow] = ()
    note: str = ""
    is_dense: bool = False
    parameters: int | None = None

    def row_at(self, setting: tuple[str, str, int]) -> BenchRow | None:
        """Its timing in one setting; None when it was not measured there."""
        return next((row for row in self.rows if row.setting == setting), None)


@dataclass(frozen=True)
class Comparison:
    """All that the page of a comparison shows. The first dense entry is the teacher."""

    title: str
    entries: Sequence[ComparisonEntry]
    benches: Sequence[Bench] = ()
    cautions: Sequence[str] = ()

    @property
    def teacher(self) -> ComparisonEntry | None:
        """What the students are held against."""
        return next((entry for entry in self.entries if entry.is_dense), None)

    @property
    def settings(self) -> list[tuple[str, str, int]]:
        """Every setting of backend, precision and batch once."""
        return list(dict.fromkeys(row.setting for entry in self.entries for row in entry.rows))


def read_comparison(folder: str | Path, title: str | None = None) -> Comparison:
    """Collect every output folder directly below ``folder``.

    A ``bench.json`` in ``folder`` itself covers them all, its models named as the folders are; without it each
    folder's own is used. Teacher and dense control come from the folders' metrics.

    Raises:
        CheckpointError: no output folder lies there, or one of the files cannot be read.
    """
    root = Path(folder)
    found = {path.name: read_parts(path) for path in sorted(root.iterdir()) if has_parts(path)} if root.is_dir() else {}
    if not found:
        raise CheckpointError(f"{root} has no output folders in it; give the folder that holds one folder per student")
    shared = read_bench(root / "bench.json")
    order = {row.model: place for place, row in reversed(list(enumerate(shared.rows if shared else [])))}
    students = sorted(
        (_entry(parts, shared) for parts in found.values()), key=lambda one: order.get(one.name, len(order))
    )
    dense = _dense_entries(list(found.values()), shared, {entry.name for entry in students})
    entries = sorted([*dense, *students], key=lambda entry: not entry.is_dense)
    benches = [shared] if shared else [parts.bench for parts in found.values() if parts.bench]
    return Comparison(title or root.resolve().name, entries, benches, _cautions(list(found.values())))


def _entry(parts: ReportParts, shared: Bench | None) -> ComparisonEntry:
    bench = shared or parts.bench
    is_dense = parts.config is not None and not parts.config.conversions
    if shared:
        # A dense model that was trained on has the timings of the dense one.
        rows = shared.rows_of(parts.name) or (shared.rows_of(shared.dense_name) if is_dense else [])
    else:
        rows = bench.rows_of(bench.dense_name if is_dense else bench.student_name) if bench else []
    quality = (parts.metrics.student or (parts.metrics.teacher if is_dense else None)) if parts.metrics else None
    size = parts.config.parameters if parts.config else None
    return ComparisonEntry(parts.name, quality, rows, conversion_sentence(parts), is_dense, size or _timed_size(rows))


def _timed_size(rows: Sequence[BenchRow]) -> int | None:
    return rows[0].params if rows else None


def _dense_entries(found: list[ReportParts], shared: Bench | None, taken: set[str]) -> list[ComparisonEntry]:
    """Teacher and control, unless a folder of their own stands for them already."""
    metrics = [parts.metrics for parts in found if parts.metrics]
    teacher = next((one.teacher for one in metrics if one.teacher), None)
    control = next((one.dense_control for one in metrics if one.dense_control), None)
    bench = shared or next((parts.bench for parts in found if parts.bench), None)
    rows = bench.rows_of(bench.dense_name) if bench else []
    own_sizes = [parts.config.parameters for parts in found if parts.config and not parts.config.conversions]
    size = next((one for one in own_sizes if one), _timed_size(rows))
    note = "The pretrained model that the students imitate."
    entries: list[ComparisonEntry] = []
    if (teacher or rows) and not (bench and bench.dense_name in taken):
        entries.append(ComparisonEntry(TEACHER, teacher, rows, note, is_dense=True, parameters=size))
    if control and CONTROL not in taken:
        own = bench.rows_of(CONTROL) if bench else []
        note = "The dense model, trained as long as the students."
        shares = " It has the teacher’s architecture, so the teacher’s timings stand for it."
        note = note if own or not rows else note + shares
        entries.append(ComparisonEntry(CONTROL, control, own or rows, note, is_dense=True, parameters=size))
    return [replace(entry, rows=_as_baseline(entry.rows)) for entry in entries]


def _as_baseline(rows: Sequence[BenchRow]) -> list[BenchRow]:
    """The dense model's own timings, whose ratio is 1 where the benchmark left it out."""
    return [
        row if row.speedup_vs_dense is not None else row.model_copy(update={"speedup_vs_dense": 1.0}) for row in rows
    ]


def _cautions(found: list[ReportParts]) -> list[str]:
    """What a reader must know before comparing numbers across folders."""
    cautions: list[str] = []
    bases = {parts.config.base_name for parts in found if parts.config and parts.config.base_name}
    if len(bases) > 1:
        cautions.append(f"The students start from different models: {', '.join(sorted(bases))}.")
    teachers = [parts.metrics.teacher for parts in found if parts.metrics and parts.metrics.teacher]
    if len({(one.images, one.top1) for one in teachers}) > 1:
        cautions.append("The folders report different figures for the teacher, so they were evaluated differently.")
    return cautions
