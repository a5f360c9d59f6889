"""Words into work: the verbs and the road, each writing only where it was told to."""

from vitslim.pipeline.comparing import ComparisonReport, compare
from vitslim.pipeline.exporting import export, verify
from vitslim.pipeline.quantizing import quantize
from vitslim.pipeline.refitting import refit
from vitslim.pipeline.road import RunResult, require_passed, run
from vitslim.pipeline.runners import open_runner
from vitslim.pipeline.verbs import (
    analyze,
    benchmark,
    distill,
    evaluate,
    open_any,
    warm_start,
)

__all__ = [
    "ComparisonReport",
    "RunResult",
    "analyze",
    "benchmark",
    "compare",
    "distill",
    "evaluate",
    "export",
    "open_any",
    "open_runner",
    "quantize",
    "refit",
    "require_passed",
    "run",
    "verify",
    "warm_start",
]
