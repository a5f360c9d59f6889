"""The report of the benchmark suite."""

from vitslim.report.suite.page import readme_tables, render_overview, render_suite, render_tables, write_suite

__all__ = ["readme_tables", "render_overview", "render_suite", "render_tables", "write_suite"]
