"""Comparing students that lie in folders: one page, one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vitslim.arguments import checked
from vitslim.errors import ConfigError
from vitslim.report import ComparisonRow, is_page, is_student, read_comparison, write_comparison
from vitslim.shapes import AnyPath, Result

COMPARISON_FILE = "compare.html"


class ComparisonReport(Result):
    """What ``compare`` found, and where its page lies."""

    title: str
    rows: list[ComparisonRow]
    cautions: list[str]  # what a reader must know before comparing numbers across folders
    sessions: int  # benchmarks that the timings come from; only ratios may be compared across them
    page: Path


@checked
def compare(
    folders: AnyPath | Sequence[AnyPath], *, out: AnyPath | None = None, overwrite: bool = False
) -> ComparisonReport:
    """Write the page that compares students, dense models among them: accuracy, size, speed.

    Args:
        folders: output folders, or folders that hold output folders.
        out: the page; ``compare.html`` where the students lie by default, or here where they lie in several places.
        overwrite: replace a file that is no page of vitslim's.

    Raises:
        CheckpointError: a folder without students was given, or one of the files cannot be read.
        ConfigError: no folder was given, or the page would replace something else.
    """
    given = [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]
    if not given:
        raise ConfigError("compare was given no folder; name folders that vitslim wrote, or one that holds them")
    page = _default_page(given) if out is None else Path(out)
    if page.exists() and not page.is_file():
        raise ConfigError(f"output {page} is not a file; name a page such as {COMPARISON_FILE}")
    if page.exists() and not is_page(page) and not overwrite:
        raise ConfigError(f"{page} is no page of vitslim's; pass --overwrite (overwrite=True) or another name")
    found = read_comparison(given)
    return ComparisonReport(
        title=found.title,
        rows=list(found.rows),
        cautions=list(found.cautions),
        sessions=len(found.benches),
        page=write_comparison(found, page),
    )


def _default_page(folders: list[Path]) -> Path:
    """In the folder that holds all students, where there is one."""
    homes = {(folder.resolve().parent if is_student(folder) else folder) for folder in folders}
    (home,) = homes if len(homes) == 1 else [Path()]
    return home / COMPARISON_FILE
