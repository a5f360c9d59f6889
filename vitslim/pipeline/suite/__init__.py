"""The benchmarks of many cases: the suite times models, the accuracy benchmark trains and then times them."""

from vitslim.pipeline.suite.accuracy import run_accuracy
from vitslim.pipeline.suite.comparing import changed_ratios
from vitslim.pipeline.suite.preset import AccuracyPreset, SuitePreset, read_preset
from vitslim.pipeline.suite.speed import list_suite, read_suite, run_suite

__all__ = [
    "AccuracyPreset",
    "SuitePreset",
    "changed_ratios",
    "list_suite",
    "read_preset",
    "read_suite",
    "run_accuracy",
    "run_suite",
]
