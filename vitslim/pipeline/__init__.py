"""Words into work: the verbs and the road, each writing only where it was told to."""

from vitslim.pipeline.comparing import ComparisonReport, compare
from vitslim.pipeline.deployment import deploy, quantize
from vitslim.pipeline.engines import refit
from vitslim.pipeline.exporting import export, verify
from vitslim.pipeline.road import RunResult, require_passed, run
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
    "deploy",
    "distill",
    "evaluate",
    "export",
    "open_any",
    "quantize",
    "refit",
    "require_passed",
    "run",
    "verify",
    "warm_start",
]
