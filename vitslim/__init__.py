"""vitslim converts pretrained vision transformers into efficient ones, and brings the evidence.

The names below are loaded on first use, so that ``import vitslim`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitslim.authors import import_checkpoint
    from vitslim.checkpoint import load, save
    from vitslim.methods import list_methods, register_method
    from vitslim.methods.depth import DepthConfig
    from vitslim.methods.evo_vit import EvoViTConfig
    from vitslim.methods.heads import HeadsConfig
    from vitslim.methods.merge import MergeConfig
    from vitslim.methods.mlp import MlpConfig
    from vitslim.methods.prune import PruneConfig
    from vitslim.methods.resolution import ResolutionConfig
    from vitslim.methods.skipat import SkipAtConfig
    from vitslim.methods.sparsifiner import SparsifinerConfig
    from vitslim.methods.sret import SretConfig
    from vitslim.methods.width import WidthConfig
    from vitslim.models import register_adapter
    from vitslim.opening import open_model
    from vitslim.pipeline import (
        analyze,
        benchmark,
        compare,
        convert,
        distill,
        evaluate,
        export,
        inspect,
        open_runner,
        plan,
        quantize,
        refit,
        verify,
        warm_start,
    )
    from vitslim.plans import ModelPlan, StepPlan, check, cost, read_plan_file
    from vitslim.targets import list_targets, register_target
    from vitslim.trunk import build, plan_of

_HOMES = {
    "authors": ("import_checkpoint",),
    "checkpoint": ("load", "save"),
    "methods": ("list_methods", "register_method"),
    "methods.depth": ("DepthConfig",),
    "methods.evo_vit": ("EvoViTConfig",),
    "methods.heads": ("HeadsConfig",),
    "methods.merge": ("MergeConfig",),
    "methods.mlp": ("MlpConfig",),
    "methods.prune": ("PruneConfig",),
    "methods.resolution": ("ResolutionConfig",),
    "methods.skipat": ("SkipAtConfig",),
    "methods.sparsifiner": ("SparsifinerConfig",),
    "methods.sret": ("SretConfig",),
    "methods.width": ("WidthConfig",),
    "models": ("register_adapter",),
    "opening": ("open_model",),
    "pipeline": (
        *("analyze", "benchmark", "compare", "convert", "distill", "evaluate", "export", "inspect", "open_runner"),
        *("plan", "quantize", "refit", "verify", "warm_start"),
    ),
    "plans": ("ModelPlan", "StepPlan", "check", "cost", "read_plan_file"),
    "targets": ("list_targets", "register_target"),
    "trunk": ("build", "plan_of"),
}
__all__ = [
    "DepthConfig",
    "EvoViTConfig",
    "HeadsConfig",
    "MergeConfig",
    "MlpConfig",
    "ModelPlan",
    "PruneConfig",
    "ResolutionConfig",
    "SkipAtConfig",
    "SparsifinerConfig",
    "SretConfig",
    "StepPlan",
    "WidthConfig",
    "analyze",
    "benchmark",
    "build",
    "check",
    "compare",
    "convert",
    "cost",
    "distill",
    "evaluate",
    "export",
    "import_checkpoint",
    "inspect",
    "list_methods",
    "list_targets",
    "load",
    "open_model",
    "open_runner",
    "plan",
    "plan_of",
    "quantize",
    "read_plan_file",
    "refit",
    "register_adapter",
    "register_method",
    "register_target",
    "save",
    "verify",
    "warm_start",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"vitslim.{home}"), name)
    raise AttributeError(f"module 'vitslim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
