"""The trunk: a plan of steps in place of a dense model's blocks."""

from vitslim.trunk.axes import BoundBlock, DenseMixing, LastLinear, Mixing, TokenRule, Weights
from vitslim.trunk.grid import watch_grid_
from vitslim.trunk.plan import Conversion, Plan, Step, check_reuse, dense_plan, settle_
from vitslim.trunk.seam import install_trunk_, is_converted, plan_summary, trunk_of
from vitslim.trunk.stream import Stream, TokenState
from vitslim.trunk.tokens import SortedTokens
from vitslim.trunk.trunk import DroppedPart, StepCall, Trunk

__all__ = [
    "BoundBlock",
    "Conversion",
    "DenseMixing",
    "DroppedPart",
    "LastLinear",
    "Mixing",
    "Plan",
    "SortedTokens",
    "Step",
    "StepCall",
    "Stream",
    "TokenRule",
    "TokenState",
    "Trunk",
    "Weights",
    "check_reuse",
    "dense_plan",
    "install_trunk_",
    "is_converted",
    "plan_summary",
    "settle_",
    "trunk_of",
    "watch_grid_",
]
