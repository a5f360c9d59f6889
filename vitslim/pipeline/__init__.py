"""The public functions and the run of a recipe, each writing only where it was asked to."""

from vitslim.pipeline.api import analyze, benchmark, convert, distill, evaluate, warm_start
from vitslim.pipeline.comparing import ComparisonReport, compare
from vitslim.pipeline.deployment import deploy, quantize
from vitslim.pipeline.engines import refit
from vitslim.pipeline.exporting import export, verify
from vitslim.pipeline.road import RunResult, require_passed, run

__all__ = [
    "ComparisonReport",
    "RunResult",
    "analyze",
    "benchmark",
    "compare",
    "convert",
    "deploy",
    "distill",
    "evaluate",
    "export",
    "quantize",
    "refit",
    "require_passed",
    "run",
    "verify",
    "warm_start",
]
