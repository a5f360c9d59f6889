"""Sparsifiner on DeiT, as the authors released it (lim142857/Sparsifiner).

Theirs is a DeiT whose attention modules hold a ``mask_predictor``; its two token matrices lie tokens × rows, ours rows
× tokens. Shares of keys and of tokens are not in the file: pass ``keep_rate``, ``token_keep_rate`` where they are not
the defaults. Their class token competes with the patches for a place among the keys, and so it does in what is imported
(``prefix_keys="chosen"``): the outputs are equal, as long as no patches are pruned. Where they are, two differences
stay. Their class query still reads the pruned patches, with key and value zero, which thins its softmax out; ours reads
those that are left alone. And where fewer patches are left than keys are wanted, each of their patch queries reads as
many keys as there are patches, which is one less than all tokens; ours reads all. Their LV-ViT has another network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vitslim.authors.key_mapping import KeyMapping, Source, shape_of
from vitslim.errors import CheckpointError

_PREDICTOR = re.compile(r"blocks\.steps\.(\d+)\.attention\.predictor\.(\w+)\.?(\w*)")
_MATRICES = {"down": "proj_n", "basis": "proj_back_n"}
_LINEAR = {"query": "proj_c_q", "key": "proj_c_k"}


def infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Rows of the basis, and what all of theirs have in common.

    Raises:
        CheckpointError: no Sparsifiner, or narrow keys of another width than half a head.
    """
    first = "blocks.0.attn.mask_predictor"
    rows = shape_of(state, f"{first}.proj_n", SOURCE.name)[1]
    narrow, width = shape_of(state, f"{first}.proj_c_q.weight", SOURCE.name)
    if narrow != max(1, width // 2):
        raise CheckpointError(f"{first} reduces heads of {width} to {narrow}; ours knows half of it, {width // 2}")
    return {"n_down": rows, "prefix_keys": "chosen", "scale": "heads", "init": "scratch"}


def map_keys(mapping: KeyMapping, model: nn.Module) -> None:
    """Fill every tensor of the model."""
    for own in model.state_dict():
        found = _PREDICTOR.fullmatch(own)
        if found is None:
            mapping.use(own, own)
            continue
        theirs = f"blocks.{found[1]}.attn.mask_predictor"
        if found[2] in _MATRICES:
            mapping.transpose(own, f"{theirs}.{_MATRICES[found[2]]}")
        else:
            mapping.use(own, f"{theirs}.{_LINEAR[found[2]]}.{found[3]}")


SOURCE = Source("sparsifiner", "sparsifiner", ("model", "module"), infer, map_keys)
