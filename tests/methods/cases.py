"""The methods as the property suite walks them; a new method joins with one line."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MethodCase:
    """One form of a method on models of at least four blocks.

    Args:
        method: its name.
        neutral: options with which the converted model computes what the dense one does, bit for bit.
        options: options with which it does its work.
        apart: properties that this form has in its own way, which its own tests hold.
    """

    method: str
    neutral: Mapping[str, Any]
    options: Mapping[str, Any]
    apart: tuple[str, ...] = ()


# Block 0 stays dense. The matrices of all variants lie on one grid, so that they can be compared across image sizes.
SPARSE: dict[str, Any] = {"layers": (1, 2, 3), "keep_rate": 0.4, "n_down": 4, "grid": (4, 4)}

CASES: dict[str, MethodCase] = {
    "skipat": MethodCase("skipat", {"layers": ()}, {"layers": (1, 2)}),
    "skipat_narrow": MethodCase("skipat", {"layers": ()}, {"layers": (1, 3), "expansion": 0.5, "kernel_size": 3}),
    "skipat_prefix": MethodCase("skipat", {"layers": ()}, {"layers": (2,), "expansion": 0.5, "prefix": "linear"}),
    "skipat_identity": MethodCase("skipat", {"layers": ()}, {"layers": (2,), "identity": True}),
    "evo_vit": MethodCase("evo_vit", {"keep": 1.0}, {}),
    "evo_vit_slow_fast": MethodCase("evo_vit", {"keep": 1.0}, {"placeholders": "slow_fast", "schedule": "layer"}),
    "sparsifiner": MethodCase("sparsifiner", {"keep_rate": 1.0}, SPARSE),
    "sparsifiner_tile": MethodCase("sparsifiner", {"keep_rate": 1.0}, {**SPARSE, "granularity": "tile", "tile": 6}),
    "sparsifiner_image": MethodCase("sparsifiner", {"keep_rate": 1.0}, {**SPARSE, "granularity": "image", "k": 8}),
    "sparsifiner_chosen": MethodCase("sparsifiner", {"keep_rate": 1.0}, {**SPARSE, "prefix_keys": "chosen"}),
    "sparsifiner_pruned": MethodCase(
        "sparsifiner", {"keep_rate": 1.0}, {**SPARSE, "token_keep_rate": 0.7, "prune_layers": (1,)}
    ),
    "sret": MethodCase("sret", {"groups": ()}, {}, ("values",)),
    "sret_stepwise": MethodCase(
        "sret", {"groups": ()}, {"shared": "stepwise", "rank": 0, "nll": True, "lrc": True}, ("values",)
    ),
    "sret_sliced": MethodCase("sret", {"groups": ()}, {"slices": (2, 4)}, ("values", "attention calls")),
}
