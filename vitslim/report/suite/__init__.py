"""The report of the benchmarks of many cases."""

from vitslim.report.suite.page import render_tables, write_suite
from vitslim.report.suite.tables import caption, main_tables

__all__ = ["caption", "main_tables", "render_tables", "write_suite"]
