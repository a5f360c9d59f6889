"""The report: one self-contained page of evidence per output folder, one that compares several."""

from vitslim.report.comparison import Comparison, ComparisonRow, is_student, read_comparison, students_in
from vitslim.report.comparison_page import render_comparison, write_comparison
from vitslim.report.page import is_page
from vitslim.report.parts import ReportParts, read_parts
from vitslim.report.run_report import render_report, write_report
from vitslim.report.sections.change import choice_words
from vitslim.report.sections.redundancy import analysis_table, recommendations, write_plots

__all__ = [
    "Comparison",
    "ComparisonRow",
    "ReportParts",
    "analysis_table",
    "choice_words",
    "is_page",
    "is_student",
    "read_comparison",
    "read_parts",
    "recommendations",
    "render_comparison",
    "render_report",
    "students_in",
    "write_comparison",
    "write_plots",
    "write_report",
]
