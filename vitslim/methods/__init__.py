"""The methods, one file each, and the verb that applies them."""

from vitslim.methods.convert import convert, method_support, plan_of, read_options, replay
from vitslim.methods.description import MethodDescription, OptionDescription, describe_method
from vitslim.methods.evo_vit import EvoViTConfig, set_schedule_
from vitslim.methods.skipat import SkipAtConfig
from vitslim.methods.sparsifiner import SparsifinerConfig
from vitslim.methods.sret import SretConfig, merge_residuals
from vitslim.methods.support import pair_support, support_cells
from vitslim.methods.table import METHODS, list_methods, method_named

__all__ = [
    "METHODS",
    "EvoViTConfig",
    "MethodDescription",
    "OptionDescription",
    "SkipAtConfig",
    "SparsifinerConfig",
    "SretConfig",
    "convert",
    "describe_method",
    "list_methods",
    "merge_residuals",
    "method_named",
    "method_support",
    "pair_support",
    "plan_of",
    "read_options",
    "replay",
    "set_schedule_",
    "support_cells",
]
