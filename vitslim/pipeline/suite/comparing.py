"""Whether the ratios of a new run are those of an earlier one: times differ between machines, ratios hardly."""

from __future__ import annotations

from vitslim.bench.suite import DENSE, Setting, SuiteReport, SuiteRow
from vitslim.errors import CheckFailedError

Key = tuple[Setting, str]  # and the competitor


def changed_ratios(before: SuiteReport, after: SuiteReport, tolerance: float) -> list[str]:
    """A sentence for every row whose ratio to dense has moved, or which the later run attempted and does not have.

    Args:
        tolerance: largest relative difference of the medians that is called the same. A row whose spreads over the
            rounds (10th to 90th percentile) overlap is the same in any case.

    Raises:
        CheckFailedError: the runs have no row in common.
    """
    old, new = _ratios(before), _ratios(after)
    attempted = _attempted(after)
    common, lost = [key for key in old if key in new], [key for key in old if key not in new and key[0] in attempted]
    if not common and not lost:
        raise CheckFailedError("the two runs of the suite have no row in common; compare runs of one preset")
    moved = [key for key in common if _has_moved(old[key], new[key], tolerance)]
    return [
        *(_words(key, old[key], f"became {_moved_to(old[key], new[key])}") for key in moved),
        *(_words(key, old[key], "is no longer measured") for key in lost),
    ]


def _moved_to(old: SuiteRow, new: SuiteRow) -> str:
    word = "slower" if new.speedup_vs_dense < old.speedup_vs_dense else "faster"
    return f"{new.speedup_vs_dense:.2f}x ({word})"


def _has_moved(old: SuiteRow, new: SuiteRow, tolerance: float) -> bool:
    apart = new.speedup_p10 > old.speedup_p90 or new.speedup_p90 < old.speedup_p10
    return apart and abs(new.speedup_vs_dense / old.speedup_vs_dense - 1) > tolerance


def _ratios(report: SuiteReport) -> dict[Key, SuiteRow]:
    rows = [row for row in report.rows if row.model != DENSE]
    return {((row.base, row.size, row.backend, row.precision, row.batch), row.model): row for row in rows}


def _attempted(report: SuiteReport) -> set[Setting]:
    """The settings of the cases that came to an end, whatever end that was."""
    return {setting for one in report.pieces if one.status != "too long" for setting in one.piece.settings}


def _words(key: Key, old: SuiteRow, end: str) -> str:
    (base, size, backend, precision, batch), model = key
    place = f"{base}{f' {size} px' if size else ''}, {backend} {precision} b{batch}"
    return f"{model} on {place}: {old.speedup_vs_dense:.2f}x {end}"
