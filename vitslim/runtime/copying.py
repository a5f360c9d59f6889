"""Copies of a model to work on, so that the given one is never touched."""

import copy
from typing import Any, cast

from torch import nn

_HOOK_TABLES = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def working_copy(model: nn.Module) -> nn.Module:
    """A copy to work on: eval mode, no gradients, no foreign hooks, not compiled; the given model stays as it is.

    Hooks stay behind because they belong to whoever set them: one that collects activations would collect ours.
    """
    duplicate = copy.deepcopy(uncompiled(model))
    return without_hooks_(duplicate).requires_grad_(False).eval()


def uncompiled(model: nn.Module) -> nn.Module:
    """The module behind ``torch.compile``, or the model itself."""
    original = getattr(model, "_orig_mod", model)
    return original if isinstance(original, nn.Module) else model


def without_hooks_(model: nn.Module) -> nn.Module:
    """Drop in place every hook that is not vitslim's own (the trunk learns the grid of its images through one)."""
    for module in model.modules():
        for table in _HOOK_TABLES:
            hooks = cast("dict[int, Any]", getattr(module, table))
            for key in [key for key, hook in hooks.items() if not _is_ours(hook)]:
                del hooks[key]
    return model


def _is_ours(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("vitslim.")
