"""The report: one self-contained page of evidence per output folder, one that compares several."""

from vitslim.report.comparison import Comparison, ComparisonEntry, read_comparison
from vitslim.report.comparison_page import render_comparison, write_comparison
from vitslim.report.page import render_report, write_report
from vitslim.report.parts import ReportParts, read_parts

__all__ = [
    "Comparison",
    "ComparisonEntry",
    "ReportParts",
    "read_comparison",
    "read_parts",
    "render_comparison",
    "render_report",
    "write_comparison",
    "write_report",
]
