"""Rendering the page of a folder again, whatever wrote the folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from vitslim.bench.accuracy import ACCURACY_FILE, AccuracyReport
from vitslim.bench.suite import SUITE_FILE
from vitslim.errors import CheckpointError
from vitslim.files import read_json
from vitslim.pipeline.comparing import compare
from vitslim.pipeline.demo import DEMO_FILE, write_demo_page
from vitslim.pipeline.suite import read_suite
from vitslim.report import is_student, students_in, write_report
from vitslim.report.suite import write_accuracy, write_suite


def render_again(folder: Path) -> Path:
    """Write the page of a run, of the demo, of a benchmark suite, of an accuracy benchmark, or of several students.

    Raises:
        CheckpointError: the folder holds none of them, or one of its files cannot be read.
    """
    if (folder / SUITE_FILE).is_file():
        return write_suite(read_suite(folder), folder)[0]
    if (folder / ACCURACY_FILE).is_file():
        return write_accuracy(read_accuracy(folder), folder)[0]
    if (folder / DEMO_FILE).is_file():
        return write_demo_page(folder)
    if not is_student(folder) and students_in(folder):
        return compare(folder).page
    return write_report(folder)


def read_accuracy(folder: Path) -> AccuracyReport:
    """The accuracy.json of a folder.

    Raises:
        CheckpointError: it is none.
    """
    path = folder / ACCURACY_FILE
    try:
        return AccuracyReport.model_validate(read_json(path))
    except ValidationError as error:
        raise CheckpointError(f"{path} is no report of the accuracy benchmark ({error.error_count()} errors)") from None
