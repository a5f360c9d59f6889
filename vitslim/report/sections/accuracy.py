"""Section: accuracy of student, teacher and fine-tuned baseline."""

from collections.abc import Mapping

from vitslim.report.commands import command
from vitslim.report.content import Cell, Element, Note, Table, absent, facts
from vitslim.report.numbers import ABSENT, digits, fixed, half_width, percent, points, whole
from vitslim.report.parts import ReportParts
from vitslim.train import EvalResult

_NAMES = {
    "teacher": "Teacher, dense",
    "dense_finetuned": "Dense model, trained like the student",
    "student": "Student",
}
_HEADER = ("Model", "Images", "Top-1", "±", "Against teacher", "Top-5", "Agreement with teacher", "KL to teacher, nats")


def accuracy(parts: ReportParts) -> list[Element]:
    """A table of the evaluated models and what may be concluded from it."""
    found = {role: parts.metrics[role] for role in _NAMES if role in parts.metrics}
    if not found:
        return [absent("Not measured", command(parts, "eval")), *_image_input(parts)]
    teacher = found.get("teacher")
    rows = [_row(_NAMES[role], one, None if role == "teacher" else teacher) for role, one in found.items()]
    caption = "± is half of the 95 % interval that this number of images allows."
    table = Table(caption, _HEADER, rows)
    return [Note(_conclusion(found)), table, *_skipped(found), *_image_input(parts)]


def _image_input(parts: ReportParts) -> list[Element]:
    """How images become the model's input; what nobody stated is marked."""
    if parts.config is None:
        return []
    found = parts.config.input
    values = {
        "image size, pixels": ("image_size", "×".join(map(str, found.image_size))),
        "mean": ("mean", ", ".join(digits(value, 4) for value in found.mean)),
        "standard deviation": ("std", ", ".join(digits(value, 4) for value in found.std)),
        "interpolation": ("interpolation", found.interpolation),
        "centre crop, share": ("crop_pct", digits(found.crop_pct, 4)),
    }
    rows = {
        name: Cell(f"{value} (assumed)", "bad") if key in found.assumed else Cell(value)
        for name, (key, value) in values.items()
    }
    note = "Assumed: nobody stated it, so it may not be what the model was trained with."
    return [*facts("How images become the model’s input.", rows), *([Note(note, "absent")] if found.assumed else [])]


def _skipped(found: Mapping[str, EvalResult]) -> list[Element]:
    """How many images could not be read; all models see the same ones."""
    worst = max(found.values(), key=lambda one: one.corrupt)
    if not worst.corrupt:
        return []
    named = f" ({', '.join(worst.examples)}{', …' if worst.corrupt > len(worst.examples) else ''})"
    count = "1 image" if worst.corrupt == 1 else f"{whole(worst.corrupt)} images"
    return [Note(f"Left out because unreadable: {count}{named if worst.examples else ''}.", "absent")]


def _row(name: str, one: EvalResult, teacher: EvalResult | None) -> list[str]:
    reference = teacher.top1 if teacher else None
    return [
        name,
        whole(one.images),
        percent(one.top1),
        ABSENT if one.top1 is None else fixed(100 * half_width(one.top1, one.images)),
        ABSENT if one.top1 is None or reference is None else points(one.top1 - reference),
        percent(one.top5),
        percent(one.agreement),
        fixed(one.kl, 4),
    ]


def _conclusion(found: Mapping[str, EvalResult]) -> str:
    student, teacher, baseline = found.get("student"), found.get("teacher"), found.get("dense_finetuned")
    if student is None:
        return "The student was not evaluated."
    if student.top1 is None:
        return "The images have no labels, so only the agreement with the teacher is known."
    sentences: list[str] = []
    if teacher and teacher.top1 is not None:
        sentences.append(_comparison("the teacher", student.top1 - teacher.top1))
    if baseline and baseline.top1 is not None:
        sentences.append(_comparison("a dense model trained the same way", student.top1 - baseline.top1))
    elif teacher:
        sentences.append("No dense model was trained the same way, so what further training alone gives is not known.")
    return " ".join(sentences) or "Only the student was evaluated."


def _comparison(other: str, change: float) -> str:
    if change == 0:
        return f"The student is exactly as accurate as {other}."
    word = "above" if change > 0 else "below"
    return f"The student is {points(abs(change)).lstrip('+')} {word} {other}."
