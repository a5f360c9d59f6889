"""Plans as data: what a conversion makes of a model, why it cannot, what it costs."""

from vitslim.plans.check import check
from vitslim.plans.choices import (
    AllTokens,
    AttentionChoice,
    Choice,
    Cost,
    Dense,
    DenseMlp,
    MlpChoice,
    NoAttention,
    NoMlp,
    OwnWeights,
    TokenChoice,
    TokenCount,
    WeightsChoice,
    dense_attention_cost,
    linear_cost,
    share_of,
)
from vitslim.plans.cost import PlanCost, StepCost, cost, describe_steps
from vitslim.plans.place import Place, places
from vitslim.plans.plan import (
    ModelPlan,
    StepPlan,
    changed_blocks,
    dense_plan,
    plan_json,
    register_choice,
)
from vitslim.plans.reading import read_plan, read_plan_file
from vitslim.plans.shape import BlockShape, LinearShape, ModelShape

__all__ = [
    "AllTokens",
    "AttentionChoice",
    "BlockShape",
    "Choice",
    "Cost",
    "Dense",
    "DenseMlp",
    "LinearShape",
    "MlpChoice",
    "ModelPlan",
    "ModelShape",
    "NoAttention",
    "NoMlp",
    "OwnWeights",
    "Place",
    "PlanCost",
    "StepCost",
    "StepPlan",
    "TokenChoice",
    "TokenCount",
    "WeightsChoice",
    "changed_blocks",
    "check",
    "cost",
    "dense_attention_cost",
    "dense_plan",
    "describe_steps",
    "linear_cost",
    "places",
    "plan_json",
    "read_plan",
    "read_plan_file",
    "register_choice",
    "share_of",
]
