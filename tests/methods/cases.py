"""The forms of all methods as the property suite runs them: those that methods register, and some of tests alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitslim.methods.support import method_forms


@dataclass(frozen=True)
class MethodCase:
    """One form of a method on models of at least four blocks."""

    method: str
    options: Mapping[str, Any]


# Block 0 stays dense. The matrices of all variants lie on one grid, so that they can be compared across image sizes.
SPARSE: dict[str, Any] = {"layers": (1, 2, 3), "keep_rate": 0.4, "n_down": 4, "grid": (4, 4)}

CASES: dict[str, MethodCase] = {
    **{form: MethodCase(method.name, options) for form, (method, options) in method_forms().items()},
    "skipat_narrow": MethodCase("skipat", {"layers": (1, 3), "expansion": 0.5, "kernel_size": 3}),
    "skipat_prefix": MethodCase("skipat", {"layers": (2,), "expansion": 0.5, "prefix": "linear"}),
    "evo_vit_layer_wise": MethodCase("evo_vit", {"placeholders": "slow_fast", "schedule": "layer"}),
    "sparsifiner": MethodCase("sparsifiner", SPARSE),
    "sparsifiner_tile": MethodCase("sparsifiner", {**SPARSE, "granularity": "tile", "tile": 6}),
    "sparsifiner_image": MethodCase("sparsifiner", {**SPARSE, "granularity": "image", "k": 8}),
    "sparsifiner_chosen": MethodCase("sparsifiner", {**SPARSE, "prefix_keys": "chosen"}),
    "sparsifiner_pruned": MethodCase("sparsifiner", {**SPARSE, "token_keep_rate": 0.7, "prune_layers": (1,)}),
    "sret_stepwise": MethodCase("sret", {"shared": "stepwise", "rank": 0, "nll": True, "lrc": True}),
    "sret_merged": MethodCase("sret", {"rank": 4, "merged": True}),
}
