"""From a budget to a plan: prices measured in the runtime, damage measured on images, recovery by short trainings."""

from vitslim.planner.budget import LADDER, Budget
from vitslim.planner.candidates import PlanSearch
from vitslim.planner.config import PlannerConfig
from vitslim.planner.damage import Damage, DamageMeter
from vitslim.planner.prediction import StepTimes, prediction_errors
from vitslim.planner.predictors import correlations, figures_of, fitted_on_others, rank_correlations
from vitslim.planner.rates import Rates, best_rates, measure_rates
from vitslim.planner.result import Answer, Outlook, PlanReport, Rung, StepReason, Trial
from vitslim.planner.search import Candidate, Compositions, Price, measured, of_all_kinds, promising
from vitslim.planner.steps import Changes, best_steps, improve, measure_changes
from vitslim.planner.times import (
    ProbeTimes,
    RuntimeConfig,
    SharesOfPlans,
    measure_models,
    measure_plans,
    probes_left,
    probes_once,
)

__all__ = [
    "LADDER",
    "Answer",
    "Budget",
    "Candidate",
    "Changes",
    "Compositions",
    "Damage",
    "DamageMeter",
    "Outlook",
    "PlanReport",
    "PlanSearch",
    "PlannerConfig",
    "Price",
    "ProbeTimes",
    "Rates",
    "Rung",
    "RuntimeConfig",
    "SharesOfPlans",
    "StepReason",
    "StepTimes",
    "Trial",
    "best_rates",
    "best_steps",
    "correlations",
    "figures_of",
    "fitted_on_others",
    "improve",
    "measure_changes",
    "measure_models",
    "measure_plans",
    "measure_rates",
    "measured",
    "of_all_kinds",
    "prediction_errors",
    "probes_left",
    "probes_once",
    "promising",
    "rank_correlations",
]
