"""vitslim converts pretrained vision transformers into efficient ones, and brings the evidence.

The names below are loaded on first use, so that ``import vitslim`` costs nothing.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vitslim.openers import offer_model_opener

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
        deploy,
        distill,
        evaluate,
        export,
        quantize,
        refit,
        verify,
        warm_start,
    )

_HOMES = {
    "vitslim.authors": ("import_checkpoint",),
    "vitslim.checkpoint": ("load", "save"),
    "vitslim.methods": ("EvoViTConfig", "SkipAtConfig", "SparsifinerConfig", "SretConfig", "list_methods"),
    "vitslim.models": ("register_adapter",),
    "vitslim.opening": ("open_model",),
    "vitslim.pipeline": (
        *("analyze", "benchmark", "compare", "convert", "deploy", "distill", "evaluate", "export", "quantize", "refit"),
        *("verify", "warm_start"),
    ),
}
__all__ = ["EvoViTConfig", "SkipAtConfig", "SparsifinerConfig", "SretConfig", "analyze", "benchmark", "compare"]
__all__ += ["convert", "deploy", "distill", "evaluate", "export", "import_checkpoint", "list_methods", "load"]
__all__ += ["open_model", "quantize", "refit", "register_adapter", "save", "verify", "warm_start"]


# So that ``vitslim.runtime.load`` can run a saved folder in torch, although saved models are opened in a room above.
offer_model_opener(lambda folder: import_module("vitslim.checkpoint").load(folder))


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'vitslim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Face(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Importing the room ``vitslim.export`` must not hide the verb of the same name.
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
