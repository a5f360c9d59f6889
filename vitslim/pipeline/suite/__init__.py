"""The benchmarks of many cases: the suite times models, the accuracy benchmark trains and then times them."""

from vitslim.pipeline.suite.preset import Preset, read_preset
from vitslim.pipeline.suite.running import Suite

__all__ = ["Preset", "Suite", "read_preset"]
