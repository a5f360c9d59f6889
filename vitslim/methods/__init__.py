"""The methods, one file each, and what applies them."""

from importlib import import_module

from vitslim.methods.base import METHODS, Evidence, Method, MethodConfig, register_method
from vitslim.methods.convert import convert, method_support, planned, read_method, read_options
from vitslim.methods.description import MethodDescription, OptionDescription, describe_method, list_methods
from vitslim.methods.support import pair_support, support_cells
from vitslim.names import METHOD_NAMES

for _name in METHOD_NAMES:
    import_module(f"vitslim.methods.{_name}")

__all__ = [
    "METHODS",
    "Evidence",
    "Method",
    "MethodConfig",
    "MethodDescription",
    "OptionDescription",
    "convert",
    "describe_method",
    "list_methods",
    "method_support",
    "pair_support",
    "planned",
    "read_method",
    "read_options",
    "register_method",
    "support_cells",
]
