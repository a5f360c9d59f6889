"""Section: whether the exported artifacts compute what the model computes."""

from vitslim.report.commands import command
from vitslim.report.content import Cell, Element, Note, Table, absent
from vitslim.report.numbers import fixed, percent, scientific
from vitslim.report.parts import ReportParts
from vitslim.targets.parity.result import ParityCheck

_HEADER = (
    "Artifact",
    "Precision",
    "Result",
    "Batch",
    "Largest error",
    "Tolerance",
    "Mean error",
    "Cosine",
    "Same class",
)


def parity(parts: ReportParts) -> list[Element]:
    """One line per comparison, and the count of those that hold."""
    if parts.parity is None or not parts.parity.checks:
        return [absent("Not measured", command(parts, "verify"))]
    checks = parts.parity.checks
    failed = sum(not one.passed for one in checks)
    whole = f"All {len(checks)} checks are within tolerance." if len(checks) > 1 else "The check holds."
    caption = (
        "Outputs of each artifact against the PyTorch model on the same images; errors are absolute, of the logits."
    )
    return [
        Note(f"{failed} of {len(checks)} checks are out of tolerance.", "bad") if failed else Note(whole),
        Table(caption, _HEADER, [_row(one) for one in checks], words=3),
        *(Note(failure, "bad") for failure in parts.parity.failures()),
        *(Note(note, "note") for note in parts.parity.notes),
    ]


def _row(one: ParityCheck) -> list[str | Cell]:
    return [
        one.artifact + ("" if one.form == "as written" else f", {one.form}"),
        one.precision,
        Cell("within", "good") if one.passed else Cell("out of tolerance", "bad"),
        str(one.batch),
        scientific(one.max_abs),
        scientific(one.tolerance),
        scientific(one.mean_abs),
        fixed(one.cosine, 6),
        percent(one.top1_agreement, 1),
    ]
