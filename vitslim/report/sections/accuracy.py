"""Section: accuracy of student, teacher and control."""

from vitslim.report.commands import eval_command
from vitslim.report.documents import Evaluation, ImageInput, Metrics
from vitslim.report.markup import Markup, element, join, paragraph, table
from vitslim.report.numbers import ABSENT, digits, fixed, half_width, percent, points, whole
from vitslim.report.parts import ReportParts
from vitslim.report.sections.absent import absent

NAMES = {
    "teacher": "Teacher, dense",
    "dense_control": "Dense control, trained like the student",
    "student": "Student",
}


def accuracy(parts: ReportParts) -> Markup:
    """A table of the evaluated models and what may be concluded from it."""
    found = _evaluations(parts.metrics) if parts.metrics else {}
    if not found:
        return join([absent("Not measured", eval_command(parts)), *image_input(parts)])
    header = (
        "Model",
        "Images",
        "Top-1",
        "±",
        "Against teacher",
        "Top-5",
        "Agreement with teacher",
        "KL to teacher, nats",
    )
    teacher = found.get("teacher")
    rows = [_row(NAMES[key], one, None if key == "teacher" else teacher) for key, one in found.items()]
    caption = "± is half of the 95 % interval that this number of images allows."
    pieces = [paragraph(_conclusion(found)), table(caption, header, rows), *_skipped(found), *image_input(parts)]
    return join(pieces)


def image_input(parts: ReportParts) -> list[Markup]:
    """How images become the model's input; what nobody stated is marked."""
    found = parts.config.input if parts.config else ImageInput()
    facts = {
        "image size, pixels": ("image_size", "×".join(map(str, found.image_size))),
        "mean": ("mean", ", ".join(digits(value, 4) for value in found.mean)),
        "standard deviation": ("std", ", ".join(digits(value, 4) for value in found.std)),
        "interpolation": ("interpolation", found.interpolation or ""),
        "centre crop, share": ("crop_pct", digits(found.crop_pct, 4) if found.crop_pct is not None else ""),
    }
    rows = [
        [name, join([value, element("strong", " (assumed)", class_="bad")]) if key in found.assumed else value]
        for name, (key, value) in facts.items()
        if value
    ]
    if not rows:
        return []
    note = (
        [paragraph("Assumed: nobody stated it, so it may not be what the model was trained with.", class_="absent")]
        if found.assumed
        else []
    )
    title = "How images become the model’s input."
    return [element("div", table(title, ("Setting", "Value"), rows, text_columns=2), class_="facts"), *note]


def _skipped(found: dict[str, Evaluation]) -> list[Markup]:
    """How many images could not be read; all models see the same ones."""
    worst = max(found.values(), key=lambda one: one.corrupt)
    if not worst.corrupt:
        return []
    named = f" ({', '.join(worst.examples)}{', …' if worst.corrupt > len(worst.examples) else ''})"
    count = "1 image" if worst.corrupt == 1 else f"{whole(worst.corrupt)} images"
    sentence = f"Left out because unreadable: {count}{named if worst.examples else ''}."
    return [paragraph(sentence, class_="absent")]


def _evaluations(metrics: Metrics) -> dict[str, Evaluation]:
    entries = {"teacher": metrics.teacher, "dense_control": metrics.dense_control, "student": metrics.student}
    return {key: one for key, one in entries.items() if one is not None}


def _row(name: str, one: Evaluation, teacher: Evaluation | None) -> list[str]:
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


def _conclusion(found: dict[str, Evaluation]) -> str:
    student, teacher, control = found.get("student"), found.get("teacher"), found.get("dense_control")
    if student is None:
        return "The student was not evaluated."
    if student.top1 is None:
        return "The images have no labels, so only the agreement with the teacher is known."
    sentences: list[str] = []
    if teacher and teacher.top1 is not None:
        sentences.append(_comparison("the teacher", student.top1 - teacher.top1))
    if control and control.top1 is not None:
        sentences.append(_comparison("a dense model trained the same way", student.top1 - control.top1))
    elif teacher:
        sentences.append("There is no dense control, so what further training alone would give is not known.")
    return " ".join(sentences) or "Only the student was evaluated."


def _comparison(other: str, change: float) -> str:
    if change == 0:
        return f"The student is exactly as accurate as {other}."
    word = "above" if change > 0 else "below"
    return f"The student is {points(abs(change)).lstrip('+')} {word} {other}."
