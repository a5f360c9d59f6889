"""The benchmark suite: presets, pieces that resume, one report."""

from vitslim.pipeline.suite.comparing import Change, changed_ratios
from vitslim.pipeline.suite.preset import Preset, read_preset
from vitslim.pipeline.suite.running import list_suite, read_suite, run_suite

__all__ = ["Change", "Preset", "changed_ratios", "list_suite", "read_preset", "read_suite", "run_suite"]
