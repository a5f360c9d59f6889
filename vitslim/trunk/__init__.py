"""The trunk: the steps of a plan in place of a dense model's blocks."""

from vitslim.trunk.axes import (
    Attention,
    BoundBlock,
    DenseAttention,
    FitBatch,
    MlpBranch,
    Regression,
    TokenRule,
    Weights,
    attend_by_operands,
)
from vitslim.trunk.build import Site, build, is_converted, plan_of, register_realiser, trunk_of
from vitslim.trunk.grid import watch_grid_
from vitslim.trunk.merged_tokens import MergedTokens
from vitslim.trunk.resolution import at_plan_size, tokens_at_grid
from vitslim.trunk.step import Step
from vitslim.trunk.stream import Stream, TokenState
from vitslim.trunk.tokens import SortedTokens
from vitslim.trunk.trunk import Conversion, DroppedPart, StepCall, Trunk

__all__ = [
    "Attention",
    "BoundBlock",
    "Conversion",
    "DenseAttention",
    "DroppedPart",
    "FitBatch",
    "MergedTokens",
    "MlpBranch",
    "Regression",
    "Site",
    "SortedTokens",
    "Step",
    "StepCall",
    "Stream",
    "TokenRule",
    "TokenState",
    "Trunk",
    "Weights",
    "at_plan_size",
    "attend_by_operands",
    "build",
    "is_converted",
    "plan_of",
    "register_realiser",
    "tokens_at_grid",
    "trunk_of",
    "watch_grid_",
]
