"""The report: one self-contained page of evidence per output folder, one that compares several."""

from vitslim.report.comparison import Comparison, ComparisonEntry, is_student, read_comparison, students_in
from vitslim.report.comparison_page import render_comparison, write_comparison
from vitslim.report.comparison_table import ComparisonRow, ComparisonSpeed, comparison_rows
from vitslim.report.page import is_page, render_report, write_report
from vitslim.report.parts import ReportParts, read_parts

__all__ = [
    "Comparison",
    "ComparisonEntry",
    "ComparisonRow",
    "ComparisonSpeed",
    "ReportParts",
    "comparison_rows",
    "is_page",
    "is_student",
    "read_comparison",
    "read_parts",
    "render_comparison",
    "render_report",
    "students_in",
    "write_comparison",
    "write_report",
]
