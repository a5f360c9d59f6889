"""SReT's own pyramid, as the authors released it (szq0214/SReT).

Ours has their names. Theirs stores a shared block once per application under as many names; ours once. Whether a model
attends in slices is not in the file: for those marked ⋇ pass ``sliced=False``, and for LT [16-14-1, 1-1-1] pass
``groups_first`` and ``groups_second``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitslim.authors.key_mapping import KeyMapping, Source, shape_of
from vitslim.errors import CheckpointError
from vitslim.models import SretPyramid
from vitslim.models.sret_pyramid import first_name


def infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Nothing; the base is the authors' own network, and its options come from the caller."""
    shape_of(state, "transformers.0.blocks.0.coefficient1.bias", SOURCE.name)
    return {}


def map_keys(mapping: KeyMapping, model: nn.Module) -> None:
    """Fill every tensor of the model.

    Raises:
        CheckpointError: the base is no pyramid, or applications of one block have different weights.
    """
    if not isinstance(model, SretPyramid):
        raise CheckpointError(
            f"SReT's authors trained a pyramid of their own, and this base is a {type(model).__name__}; choose "
            "vitslim_sret_tiny, vitslim_sret_lt or vitslim_sret_small"
        )
    for own in model.state_dict():
        mapping.use(own, own)
    for name in mapping.unexpected():
        first = _first_name(name, model)
        if first == name or first not in mapping.filled:
            continue
        if not torch.equal(mapping.state[name], mapping.filled[first]):
            raise CheckpointError(f"{name} differs from {first}, which is the same parameter of a shared block")
        mapping.drop(name, f"the same parameter as {first}, at a further application of its block")


def _first_name(name: str, model: SretPyramid) -> str:
    try:
        return first_name(name, model)
    except (IndexError, ValueError):
        # A stage or a name that this pyramid does not have; it stays unexpected.
        return name


SOURCE = Source("sret", None, ("model",), infer, map_keys)
