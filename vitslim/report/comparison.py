"""Collecting several students, to be shown side by side."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitslim.errors import CheckpointError
from vitslim.report.documents import Bench, BenchRow, Evaluation
from vitslim.report.names import base_title
from vitslim.report.parts import ReportParts, read_bench, read_parts
from vitslim.report.sections.headline import conversion_sentence

TEACHER, CONTROL = "dense teacher", "dense control"
STUDENT_FILES = ("config.json", "metrics.json")

Setting = tuple[str, str, int]  # backend, precision, batch


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
        macs: multiply-accumulates per image of the model that was timed, else of the one that was evaluated.
        teacher_top1: what its accuracy is held against, 0..1; None for the teacher itself, or where it is not known.
    """

    name: str
    quality: Evaluation | None = None
    rows: Sequence[BenchRow] = ()
    note: str = ""
    is_dense: bool = False
    parameters: int | None = None
    macs: int | None = None
    teacher_top1: float | None = None

    def row_at(self, setting: Setting) -> BenchRow | None:
        """Its timing in one setting; None when it was not measured there."""
        return next((row for row in self.rows if row.setting == setting), None)


@dataclass(frozen=True)
class Comparison:
    """All that the page of a comparison shows."""

    title: str
    entries: Sequence[ComparisonEntry]
    benches: Sequence[Bench] = ()
    cautions: Sequence[str] = ()

    @property
    def settings(self) -> list[Setting]:
        """Every setting of backend, precision and batch once."""
        return list(dict.fromkeys(row.setting for entry in self.entries for row in entry.rows))


@dataclass(frozen=True)
class _Student:
    """A folder with the session that timed its model: the one shared by all, or its own."""

    parts: ReportParts
    bench: Bench | None
    rows: Sequence[BenchRow]

    @property
    def is_dense(self) -> bool:
        return self.parts.config is not None and not self.parts.config.conversions

    @property
    def base(self) -> str:
        """What the student was made of; empty where that is not known."""
        return (self.parts.config and base_title(self.parts.config)) or ""


def is_student(folder: Path) -> bool:
    """Whether a folder holds one model, dense or converted, or what was measured of it."""
    return any((folder / name).is_file() for name in STUDENT_FILES)


def students_in(folder: Path) -> list[Path]:
    """The folders of one model each that lie directly in a folder."""
    return [path for path in sorted(folder.iterdir()) if is_student(path)] if folder.is_dir() else []


def student_folders(folders: Iterable[str | Path]) -> list[Path]:
    """Every given folder of one model, and for every other one those that lie directly in it.

    Raises:
        CheckpointError: one of them is neither.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        inside = [folder] if is_student(folder) else students_in(folder)
        if not inside:
            raise CheckpointError(
                f"{folder} is no output folder of a vitslim command and has no output folders in it; give the folders "
                "of the students, or the one that holds them"
            )
        found += inside
    return list({path.resolve(): path for path in found}.values())


def read_comparison(folders: str | Path | Iterable[str | Path], title: str | None = None) -> Comparison:
    """Collect students, given as their folders or as folders that hold them.

    Where all lie in one folder, its ``bench.json`` covers those that it names as their folders are called; the others
    have what their own one says. Teacher and dense control come from the folders' metrics.

    Raises:
        CheckpointError: a folder without students was given, or one of the files cannot be read.
    """
    paths = student_folders([folders] if isinstance(folders, str | Path) else folders)
    homes = {path.resolve().parent for path in paths}
    shared = read_bench(next(iter(homes)) / "bench.json") if len(homes) == 1 else None
    order = {row.model: place for place, row in reversed(list(enumerate(shared.rows if shared else [])))}
    named = sorted(_named(paths).items(), key=lambda one: order.get(one[0], len(order)))
    students = [_student(replace(read_parts(path), name=name), shared) for name, path in named]
    dense = [one for base in dict.fromkeys(one.base for one in students) for one in _dense_entries(students, base)]
    entries = sorted([*dense, *map(_entry, students)], key=lambda entry: not entry.is_dense)
    benches = {id(one.bench): one.bench for one in students if one.bench}
    return Comparison(title or _title(students), entries, list(benches.values()), _cautions(students))


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Folders by their own names, or with that of the folder they lie in where two are alike."""
    found = [path.resolve() for path in paths]
    names = [path.name for path in found]
    return {path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}": path for path in found}


def _student(parts: ReportParts, shared: Bench | None) -> _Student:
    is_dense = parts.config is not None and not parts.config.conversions
    if shared is not None:
        # A dense model that was trained on has the timings of the dense one.
        rows = shared.rows_of(parts.name) or (shared.rows_of(shared.dense_name) if is_dense else [])
        if rows or parts.bench is None:
            return _Student(parts, shared, rows)
    bench = parts.bench
    rows = bench.rows_of(bench.dense_name if is_dense else bench.student_name) if bench else []
    return _Student(parts, bench, rows)


def _entry(student: _Student) -> ComparisonEntry:
    parts, metrics, rows = student.parts, student.parts.metrics, student.rows
    quality = (metrics.student or (metrics.teacher if student.is_dense else None)) if metrics else None
    size = parts.cost.params if parts.cost else parts.config.parameters if parts.config else None
    return ComparisonEntry(
        parts.name,
        quality,
        _as_baseline(rows) if student.is_dense else rows,
        conversion_sentence(parts),
        student.is_dense,
        size or _timed(rows, "params"),
        _timed(rows, "macs") or (parts.cost.macs if parts.cost else None),
        metrics.teacher.top1 if metrics and metrics.teacher else None,
    )


def _timed(rows: Sequence[BenchRow], count: str) -> int | None:
    return getattr(rows[0], count) if rows else None


def _dense_entries(students: Sequence[_Student], base: str) -> list[ComparisonEntry]:
    """Teacher and control of the students of one base, unless a folder of their own stands for them already."""
    of_base = [one for one in students if one.base == base]
    taken = {one.parts.name for one in students}
    known = "" if len({one.base for one in students}) == 1 else f" ({base or 'of an unknown model'})"
    metrics = [one.parts.metrics for one in of_base if one.parts.metrics]
    teacher = next((one.teacher for one in metrics if one.teacher), None)
    control = next((one.dense_control for one in metrics if one.dense_control), None)
    bench = next((one.bench for one in of_base if one.bench), None)
    rows = _as_baseline(bench.rows_of(bench.dense_name) if bench else [])
    cost = next((one.parts.cost for one in of_base if one.parts.cost), None)
    own_sizes = [one.parts.config.parameters for one in of_base if one.parts.config and one.is_dense]
    size = next((one for one in [cost.dense_params if cost else None, *own_sizes] if one), _timed(rows, "params"))
    macs = _timed(rows, "macs") or (cost.dense_macs if cost else None)
    note = "The pretrained model that the students imitate."
    entries: list[ComparisonEntry] = []
    # Where the teacher was not evaluated its timings alone say nothing that a dense folder does not.
    has_stand_in = bool(bench and bench.dense_name in taken) or (
        teacher is None and any(one.is_dense for one in of_base)
    )
    if (teacher or rows) and not has_stand_in:
        entries.append(ComparisonEntry(TEACHER + known, teacher, rows, note, is_dense=True, parameters=size, macs=macs))
    if control and CONTROL not in taken:
        own = _as_baseline(bench.rows_of(CONTROL) if bench else [])
        note = "The dense model, trained as long as the students."
        shares = " It has the teacher’s architecture, so the teacher’s timings stand for it."
        note = note if own or not rows else note + shares
        top1 = teacher.top1 if teacher else None
        entries.append(ComparisonEntry(CONTROL + known, control, own or rows, note, True, size, macs, top1))
    return entries


def _as_baseline(rows: Sequence[BenchRow]) -> list[BenchRow]:
    """The dense model's own timings, whose ratio is 1 where the benchmark left it out."""
    return [
        row if row.speedup_vs_dense is not None else row.model_copy(update={"speedup_vs_dense": 1.0}) for row in rows
    ]


def _title(students: Sequence[_Student]) -> str:
    converted = sum(not one.is_dense for one in students)
    bases = [base for base in dict.fromkeys(one.base for one in students) if base]
    return f"{' and '.join(bases) or 'Unknown models'}: {converted} student{'' if converted == 1 else 's'}"


def _cautions(students: Sequence[_Student]) -> list[str]:
    """What a reader must know before comparing numbers across folders."""
    cautions: list[str] = []
    bases = {one.base for one in students if one.base}
    if len(bases) > 1:
        cautions.append(f"The students start from different models: {', '.join(sorted(bases))}.")
    for base in sorted(bases):
        metrics = [one.parts.metrics for one in students if one.base == base and one.parts.metrics]
        if len({(one.teacher.images, one.teacher.top1) for one in metrics if one.teacher}) > 1:
            cautions.append(
                f"The folders report different figures for the teacher{f' {base}' if len(bases) > 1 else ''}, so they "
                "were evaluated differently."
            )
    return cautions
