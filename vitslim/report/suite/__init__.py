"""The report of the benchmark suite."""

from vitslim.report.suite.accuracy import accuracy_table, render_accuracy, write_accuracy
from vitslim.report.suite.page import readme_tables, render_overview, render_tables, write_suite

__all__ = [
    "accuracy_table",
    "readme_tables",
    "render_accuracy",
    "render_overview",
    "render_tables",
    "write_accuracy",
    "write_suite",
]
