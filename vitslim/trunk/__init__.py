"""The trunk: a plan of steps in place of a dense model's blocks."""

from vitslim.trunk.axes import BoundBlock, DenseMixing, Mixing, TokenRule, Weights
from vitslim.trunk.plan import Conversion, Plan, Step, dense_plan
from vitslim.trunk.seam import install_trunk_, is_converted, plan_summary, trunk_of
from vitslim.trunk.stream import Stream, TokenState
from vitslim.trunk.trunk import DroppedPart, StepCall, Trunk

__all__ = [
    "BoundBlock",
    "Conversion",
    "DenseMixing",
    "DroppedPart",
    "Mixing",
    "Plan",
    "Step",
    "StepCall",
    "Stream",
    "TokenRule",
    "TokenState",
    "Trunk",
    "Weights",
    "dense_plan",
    "install_trunk_",
    "is_converted",
    "plan_summary",
    "trunk_of",
]
