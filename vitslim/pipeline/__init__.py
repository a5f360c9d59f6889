"""The public functions and the run of a recipe, each writing only where it was asked to."""

from vitslim.pipeline.api import analyze, benchmark, convert, distill, evaluate, warm_start
from vitslim.pipeline.budgets import plan, run
from vitslim.pipeline.comparing import ComparisonReport, compare
from vitslim.pipeline.exporting import export, verify
from vitslim.pipeline.inspecting import Inspection, inspect
from vitslim.pipeline.quantizing import quantize
from vitslim.pipeline.refitting import refit
from vitslim.pipeline.runners import open_runner
from vitslim.pipeline.running import RunResult, require_passed

__all__ = [
    "ComparisonReport",
    "Inspection",
    "RunResult",
    "analyze",
    "benchmark",
    "compare",
    "convert",
    "distill",
    "evaluate",
    "export",
    "inspect",
    "open_runner",
    "plan",
    "quantize",
    "refit",
    "require_passed",
    "run",
    "verify",
    "warm_start",
]
