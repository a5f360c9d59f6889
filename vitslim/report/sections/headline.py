"""The four figures that matter, at the top of the report."""

from vitslim.bench import BenchRow
from vitslim.bench.ratios import is_across
from vitslim.report.content import TONES, Card, Cell, Tone
from vitslim.report.numbers import amount, percent, points, times
from vitslim.report.parts import ReportParts
from vitslim.report.sections.speed import student_rows


def headline(parts: ReportParts) -> list[Card]:
    """Accuracy, speed, parameters, multiply-accumulates."""
    return [_accuracy(parts), _speed(parts), *_sizes(parts)]


def _accuracy(parts: ReportParts) -> Card:
    student, teacher = parts.metrics.get("student"), parts.metrics.get("teacher")
    if student is None:
        return Card("Top-1 accuracy", None, ["not measured"])
    if student.top1 is None:
        words = ["no labels: the same class as the teacher"]
        return Card("Agreement with the teacher", percent(student.agreement), words)
    if teacher is None or teacher.top1 is None:
        return Card("Top-1 accuracy", percent(student.top1), ["teacher not measured"])
    change = student.top1 - teacher.top1
    tone: Tone = "good" if change > 0 else "bad" if change < 0 else "even"
    detail = [Cell(points(change), tone), f" from the teacher’s {percent(teacher.top1)}"]
    return Card("Top-1 accuracy", percent(student.top1), detail)


def _speed(parts: ReportParts) -> Card:
    rows = [row for row in student_rows(parts.bench) if row.verdict is not None]
    name = "Speed against dense, fused attention"
    if not rows:
        return Card(name, None, ["not measured"])
    ratios = [row.speedup_vs_dense for row in rows]
    slowest, fastest = times(min(ratios)), times(max(ratios))
    figure = slowest if slowest == fastest else f"{slowest.rstrip('×')}–{fastest}"
    tones: set[Tone] = {TONES[row.verdict] for row in rows if row.verdict}
    across = [row.speedup_vs_dense_torch or 0.0 for row in rows if is_across(row)]
    exported = [f"; exported, up to {times(max(across))} dense in torch"] if across else []
    return Card(name, figure, [*_verdicts(rows), *exported], tones.pop() if len(tones) == 1 else None)


def _verdicts(rows: list[BenchRow]) -> list[str | Cell]:
    """In how many settings it is faster, slower, or neither."""
    words = [row.verdict for row in rows]
    counts = [
        Cell(word if len(words) == 1 else f"{word} in {words.count(word)}", tone)
        for word, tone in TONES.items()
        if word in words
    ]
    listed = [element for count in counts for element in (", ", count)][1:]
    return [*listed, " in the one setting measured" if len(words) == 1 else f" of {len(words)} settings"]


def _sizes(parts: ReportParts) -> list[Card]:
    """Counted at the conversion, else by the benchmark, else as saved."""
    cost, student = parts.cost, next(iter(student_rows(parts.bench)), None)
    dense = next((row for row in parts.bench.rows if row.model == parts.bench.baseline), None) if parts.bench else None
    saved = parts.config.parameters if parts.config else None
    params = cost.params if cost else student.params if student else saved
    macs = cost.macs if cost else student.macs if student else None
    dense_params = cost.dense_params if cost else dense.params if dense else None
    dense_macs = cost.dense_macs if cost else dense.macs if dense else None
    return [_size("Parameters", "", params, dense_params), _size("Multiply-accumulates", "MAC", macs, dense_macs)]


def _size(name: str, unit: str, here: int | None, before: int | None) -> Card:
    if here is None:
        return Card(name, None, ["not counted"])
    share = f"{percent(here / before, 1)} of dense ({amount(before, unit)})" if before else "dense not counted"
    return Card(name, amount(here, unit), [share])
