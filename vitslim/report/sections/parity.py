"""Section: whether the exported artefacts compute what the model computes."""

from vitslim.report.commands import verify_command
from vitslim.report.documents import Parity, ParityCheck
from vitslim.report.markup import Markup, element, join, paragraph, table
from vitslim.report.numbers import ABSENT, fixed, percent, scientific
from vitslim.report.parts import ReportParts
from vitslim.report.sections.absent import absent


def parity(parts: ReportParts) -> Markup:
    """One line per comparison, and the count of those that hold."""
    if parts.parity is None or not parts.parity.checks:
        return absent("Not measured", verify_command(parts))
    checks = parts.parity.checks
    header = (
        "Artefact",
        "Precision",
        "Result",
        "Batch",
        "Largest error",
        "Tolerance",
        "Mean error",
        "Cosine",
        "Same class",
    )
    caption = (
        "Outputs of each artefact against the PyTorch model on the same images; errors are absolute, of the logits."
    )
    return join(
        [
            paragraph(_verdict(checks)),
            table(caption, header, [_row(one) for one in checks], text_columns=3),
            *_remarks(parts.parity),
        ]
    )


def _verdict(checks: list[ParityCheck]) -> Markup:
    failed = sum(not one.passed for one in checks)
    if failed:
        return element("strong", f"{failed} of {len(checks)} checks are out of tolerance.", class_="bad")
    return element("span", f"All {len(checks)} checks are within tolerance." if len(checks) > 1 else "The check holds.")


def _remarks(parity: Parity) -> list[Markup]:
    """Each broken promise in a sentence of its own, then what else the check wants known."""
    failures = [
        f"{one.artifact}, {one.precision}, batch {one.batch}: {fault}"
        for one in parity.checks
        for fault in one.failures
    ]
    return [
        *(paragraph(failure, class_="bad") for failure in failures),
        *(paragraph(note, class_="note") for note in parity.notes),
    ]


def _row(one: ParityCheck) -> list[str]:
    result = (
        element("span", "within", class_="good") if one.passed else element("strong", "out of tolerance", class_="bad")
    )
    return [
        one.artifact,
        one.precision or ABSENT,
        result,
        ABSENT if one.batch is None else str(one.batch),
        scientific(one.max_abs),
        scientific(one.tolerance),
        scientific(one.mean_abs),
        fixed(one.cosine, 6),
        percent(one.top1_agreement, 1),
    ]
