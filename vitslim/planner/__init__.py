"""From a budget to a plan: prices measured in the runtime, damage measured on images, recovery by short trainings."""

from vitslim.planner.budget import Budget
from vitslim.planner.damage import Damage, DamageMeter
from vitslim.planner.predictors import rank_correlations
from vitslim.planner.result import PlanReport, Rung, Trial
from vitslim.planner.search import Candidate, Composition, best_of_each_kind, compositions, rank
from vitslim.planner.times import ProbeTimes, RuntimeConfig, StepTimes, measure_models, measure_plans, prediction_errors, probes_once

__all__ = [
    "Budget",
    "Candidate",
    "Composition",
    "Damage",
    "DamageMeter",
    "PlanReport",
    "ProbeTimes",
    "Rung",
    "RuntimeConfig",
    "StepTimes",
    "Trial",
    "best_of_each_kind",
    "compositions",
    "measure_models",
    "measure_plans",
    "prediction_errors",
    "probes_once",
    "rank",
    "rank_correlations",
]
