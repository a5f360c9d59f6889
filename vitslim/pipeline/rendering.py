"""Rendering the page of a folder again, whatever wrote the folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from vitslim.bench.suite import SUITE_FILE, SuiteReport
from vitslim.errors import CheckpointError
from vitslim.files import read_json
from vitslim.pipeline.comparing import compare
from vitslim.pipeline.demo import DEMO_FILE, write_demo_page
from vitslim.report import is_student, students_in, write_report
from vitslim.report.suite import write_suite


def render_again(folder: Path) -> Path:
    """Write the page of a run, of the demo, of a benchmark of many cases, or of several students.

    Raises:
        CheckpointError: the folder holds none of them, or one of its files cannot be read.
    """
    if (folder / SUITE_FILE).is_file():
        return write_suite(read_suite(folder), folder)
    if (folder / DEMO_FILE).is_file():
        return write_demo_page(folder)
    if not is_student(folder) and students_in(folder):
        return compare(folder).page
    return write_report(folder)


def read_suite(folder: Path) -> SuiteReport:
    """The suite.json of a folder.

    Raises:
        CheckpointError: it is none.
    """
    path = folder / SUITE_FILE
    try:
        return SuiteReport.model_validate(read_json(path))
    except ValidationError as error:
        raise CheckpointError(f"{path} is no report of a benchmark ({error.error_count()} errors)") from None
