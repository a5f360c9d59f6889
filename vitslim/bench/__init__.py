"""What a model costs, on paper and by the clock."""

from vitslim.bench.benchmark import BenchConfig, benchmark
from vitslim.bench.cost import count_macs, count_parameters
from vitslim.bench.environment import environment
from vitslim.bench.ratios import remarks
from vitslim.bench.result import BenchReport, BenchRow, Skipped
from vitslim.bench.tables import (
    caption,
    replace_between_markers,
    skipped_lines,
    text_table,
)

__all__ = [
    "BenchConfig",
    "BenchReport",
    "BenchRow",
    "Skipped",
    "benchmark",
    "caption",
    "count_macs",
    "count_parameters",
    "environment",
    "remarks",
    "replace_between_markers",
    "skipped_lines",
    "text_table",
]
