"""Collecting several students, to be shown side by side."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vitslim.bench import BenchReport, BenchRow
from vitslim.errors import CheckpointError
from vitslim.report.names import base_title
from vitslim.report.numbers import half_width
from vitslim.report.parts import ReportParts, read_bench, read_parts
from vitslim.report.sections.speed import Setting, setting_of, student_rows
from vitslim.shapes import Result
from vitslim.train import EvalResult

TEACHER, BASELINE = "dense teacher", "dense finetuned"
_STUDENT_FILES = ("config.json", "metrics.json")


class ComparisonRow(Result):
    """One model of a comparison; None is what was not measured."""

    model: str
    is_dense: bool
    images: int | None  # held-out ones
    top1: float | None  # share of images, 0..1
    top1_half_width: float | None  # half of the 95 % interval that this number of images allows
    top1_vs_teacher: float | None  # difference of shares
    agreement: float | None
    params: int | None  # of the model that was evaluated; the timings may be of a larger one of its kind
    macs: int | None  # per image of the model that was timed, else of the one that was evaluated
    speed: list[BenchRow]  # the ratios are of the session that each was measured in
    note: str  # one sentence on what it is

    def at(self, setting: Setting) -> BenchRow | None:
        """Its timing in one setting; None when it was not measured there."""
        return next((row for row in self.speed if setting_of(row) == setting), None)


@dataclass(frozen=True)
class Comparison:
    """All that the page of a comparison shows; dense models come first."""

    title: str
    rows: Sequence[ComparisonRow]
    benches: Sequence[BenchReport] = ()
    cautions: Sequence[str] = ()

    @property
    def settings(self) -> list[Setting]:
        """Every setting of backend, precision and batch once."""
        return list(dict.fromkeys(setting_of(one) for row in self.rows for one in row.speed))


@dataclass(frozen=True)
class _Student:
    """A folder with the session that timed its model: the one shared by all, or its own."""

    parts: ReportParts
    bench: BenchReport | None
    speed: list[BenchRow]

    @property
    def base(self) -> str:
        """What the student was made of; empty where that is not known."""
        return "" if self.parts.config is None else base_title(self.parts.config)


def is_student(folder: Path) -> bool:
    """Whether a folder holds one model, dense or converted, or what was measured of it."""
    return any((folder / name).is_file() for name in _STUDENT_FILES)


def students_in(folder: Path) -> list[Path]:
    """The folders of one model each that lie directly in a folder."""
    return [path for path in sorted(folder.iterdir()) if is_student(path)] if folder.is_dir() else []


def read_comparison(folders: str | Path | Iterable[str | Path], title: str | None = None) -> Comparison:
    """Collect students, given as their folders or as folders that hold them.

    Where all lie in one folder, its ``bench.json`` covers those that it names as their folders are called; the others
    have what their own one says. Teacher and fine-tuned baseline come from the folders' metrics.

    Raises:
        CheckpointError: a folder without students was given, or one of the files cannot be read.
    """
    paths = _student_folders([folders] if isinstance(folders, str | Path) else folders)
    homes = {path.parent for path in paths}
    shared = read_bench(homes.pop() / "bench.json") if len(homes) == 1 else None
    order = {row.model: place for place, row in reversed(list(enumerate(shared.rows if shared else [])))}
    named = sorted(_named(paths).items(), key=lambda one: order.get(one[0], len(order)))
    students = [_student(replace(read_parts(path), name=name), shared) for name, path in named]
    dense = [row for base in dict.fromkeys(one.base for one in students) for row in _dense_rows(students, base)]
    rows = sorted([*dense, *map(_row, students)], key=lambda row: not row.is_dense)
    benches = {id(one.bench): one.bench for one in students if one.bench}
    return Comparison(title or _title(students), rows, list(benches.values()), _cautions(students))


def _student_folders(folders: Iterable[str | Path]) -> list[Path]:
    """Every given folder of one model, and for every other one those that lie directly in it."""
    found: list[Path] = []
    for folder in map(Path, folders):
        inside = [folder] if is_student(folder) else students_in(folder)
        if not inside:
            raise CheckpointError(
                f"{folder} is no output folder of a vitslim command and has no output folders in it; give the folders "
                "of the students, or the one that holds them"
            )
        found += inside
    return list(dict.fromkeys(path.resolve() for path in found))


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Folders by their own names, or with that of the folder they lie in where two are alike."""
    names = [path.name for path in paths]
    return {path.name if names.count(path.name) == 1 else f"{path.parent.name}/{path.name}": path for path in paths}


def _student(parts: ReportParts, shared: BenchReport | None) -> _Student:
    for bench in (shared, parts.bench):
        # A dense model that was trained on has the timings of the dense one.
        found = _of(bench, parts.name) or (_of(bench, bench.baseline) if bench and parts.is_dense else [])
        if not found and bench is parts.bench:
            found = student_rows(bench)
        if found:
            return _Student(parts, bench, found)
    return _Student(parts, parts.bench or shared, [])


def _of(bench: BenchReport | None, model: str) -> list[BenchRow]:
    return [row for row in bench.rows if row.model == model] if bench else []


def _row(student: _Student) -> ComparisonRow:
    parts, timed = student.parts, next(iter(student.speed), None)
    teacher = parts.metrics.get("teacher")
    quality = parts.metrics.get("student") or (teacher if parts.is_dense else None)
    size = parts.cost.params if parts.cost else parts.config.parameters if parts.config else None
    return _measured(
        parts.name,
        quality,
        None if teacher is None else teacher.top1,
        is_dense=parts.is_dense,
        speed=student.speed,
        note=parts.sentence,
        params=size or (timed.params if timed else None),
        macs=timed.macs if timed else parts.cost.macs if parts.cost else None,
    )


def _measured(name: str, quality: EvalResult | None, reference: float | None, **known: object) -> ComparisonRow:
    top1 = quality.top1 if quality else None
    figures = {
        "model": name,
        "images": quality.images if quality else None,
        "top1": top1,
        "top1_half_width": half_width(top1, quality.images) if quality and top1 is not None else None,
        "top1_vs_teacher": None if top1 is None or reference is None else top1 - reference,
        "agreement": quality.agreement if quality else None,
    }
    return ComparisonRow.model_validate({**figures, **known})


def _dense_rows(students: Sequence[_Student], base: str) -> list[ComparisonRow]:
    """Teacher and fine-tuned baseline of the students of one base, unless a folder of their own stands for them."""
    of_base = [one for one in students if one.base == base]
    taken = {one.parts.name for one in students}
    known = "" if len({one.base for one in students}) == 1 else f" ({base or 'of an unknown model'})"
    teacher = next((found for one in of_base if (found := one.parts.metrics.get("teacher"))), None)
    tuned = next((found for one in of_base if (found := one.parts.metrics.get("dense_finetuned"))), None)
    bench = next((one.bench for one in of_base if one.bench), None)
    cost = next((one.parts.cost for one in of_base if one.parts.cost), None)
    timings = _of(bench, bench.baseline) if bench else []
    timed = next(iter(timings), None)
    size = cost.dense_params if cost else timed.params if timed else None
    macs = timed.macs if timed else cost.dense_macs if cost else None
    shape = {"is_dense": True, "params": size, "macs": macs}
    rows: list[ComparisonRow] = []
    # Where the teacher was not evaluated its timings alone say nothing that a dense folder does not.
    has_stand_in = (bench and bench.baseline in taken) or (
        teacher is None and any(one.parts.is_dense for one in of_base)
    )
    if (teacher or timings) and not has_stand_in:
        note = "The pretrained model that the students imitate."
        rows.append(_measured(TEACHER + known, teacher, None, speed=timings, note=note, **shape))
    if tuned and BASELINE not in taken:
        note = "The dense model, trained as long as the students; the teacher’s timings stand for it."
        reference = teacher.top1 if teacher else None
        rows.append(_measured(BASELINE + known, tuned, reference, speed=timings, note=note, **shape))
    return rows


def _title(students: Sequence[_Student]) -> str:
    converted = sum(not one.parts.is_dense for one in students)
    bases = [base for base in dict.fromkeys(one.base for one in students) if base]
    return f"{' and '.join(bases) or 'Unknown models'}: {converted} student{'' if converted == 1 else 's'}"


def _cautions(students: Sequence[_Student]) -> list[str]:
    """What a reader must know before comparing numbers across folders."""
    cautions: list[str] = []
    bases = sorted({one.base for one in students if one.base})
    if len(bases) > 1:
        cautions.append(f"The students start from different models: {', '.join(bases)}.")
    for base in bases:
        teachers = [one.parts.metrics.get("teacher") for one in students if one.base == base]
        if len({(one.images, one.top1) for one in teachers if one}) > 1:
            which = f" {base}" if len(bases) > 1 else ""
            cautions.append(
                f"The folders report different figures for the teacher{which}, so they were evaluated differently."
            )
    return cautions
