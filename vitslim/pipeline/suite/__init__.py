"""The benchmark suite: presets, pieces that resume, one report."""

from vitslim.pipeline.suite.preset import Preset, read_preset
from vitslim.pipeline.suite.running import read_suite, run_suite

__all__ = ["Preset", "read_preset", "read_suite", "run_suite"]
