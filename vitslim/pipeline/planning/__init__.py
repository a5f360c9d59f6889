"""From budgets to plans: price, damage, search and short trainings, in a folder that is resumed."""

from vitslim.pipeline.planning.outline import PlanOutline, outline_plan
from vitslim.pipeline.planning.running import TOLERANCE, plan

__all__ = ["TOLERANCE", "PlanOutline", "outline_plan", "plan"]
