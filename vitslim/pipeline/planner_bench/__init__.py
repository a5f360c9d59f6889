"""The benchmark of the planner: its students beside every simpler way that is as fast, trained with the same budget."""

from vitslim.pipeline.planner_bench.preset import PlannerPreset, read_preset
from vitslim.pipeline.planner_bench.running import PlannerBench

__all__ = ["PlannerBench", "PlannerPreset", "read_preset"]
