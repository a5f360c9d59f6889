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
    """

    method: str
    neutral: Mapping[str, Any]
    options: Mapping[str, Any]


CASES: dict[str, MethodCase] = {
    "skipat": MethodCase("skipat", {"layers": ()}, {"layers": (1, 2)}),
    "skipat_narrow": MethodCase("skipat", {"layers": ()}, {"layers": (1, 3), "expansion": 0.5, "kernel_size": 3}),
    "skipat_identity": MethodCase("skipat", {"layers": ()}, {"layers": (2,), "identity": True}),
}
