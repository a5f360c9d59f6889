"""vitslim converts pretrained vision transformers into efficient ones, and brings the evidence.

The names below are loaded on first use, so that ``import vitslim`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitslim.authors import import_checkpoint
    from vitslim.checkpoint import load, save
    from vitslim.methods import EvoViTConfig, SkipAtConfig, SparsifinerConfig, SretConfig, list_methods
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
        open_runner,
        quantize,
        refit,
        verify,
        warm_start,
    )
    from vitslim.targets import list_targets, register_target

_HOMES = {
    "vitslim.authors": ("import_checkpoint",),
    "vitslim.checkpoint": ("load", "save"),
    "vitslim.methods": ("EvoViTConfig", "SkipAtConfig", "SparsifinerConfig", "SretConfig", "list_methods"),
    "vitslim.models": ("register_adapter",),
    "vitslim.opening": ("open_model",),
    "vitslim.pipeline": (
        *("analyze", "benchmark", "compare", "convert", "distill", "evaluate", "export", "open_runner", "quantize"),
        "refit",
        *("verify", "warm_start"),
    ),
    "vitslim.targets": ("list_targets", "register_target"),
}
__all__ = ["EvoViTConfig", "SkipAtConfig", "SparsifinerConfig", "SretConfig", "analyze", "benchmark", "compare"]
__all__ += ["convert", "distill", "evaluate", "export", "import_checkpoint", "list_methods", "list_targets", "load"]
__all__ += ["open_model", "open_runner", "quantize", "refit", "register_adapter", "register_target", "save", "verify"]
__all__ += ["warm_start"]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'vitslim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
