"""SkipAt as Qualcomm AI Research released it (Qualcomm-AI-research/skip-attention, for timm 0.5.4).

Theirs is timm's ViT with six skip functions beside the blocks, ``param_1`` to ``param_6``, taken in turn by the skipped
blocks, which keep their unused attention. Which blocks are skipped is not in the file: 3..8 in all released models.
Their preprocessing is that of timm's ``vit_*`` models, not of ``deit_*``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from vitslim.authors.key_mapping import KeyMapping, Source, shape_of
from vitslim.errors import CheckpointError
from vitslim.trunk import trunk_of

_RELEASED_LAYERS = (3, 4, 5, 6, 7, 8)
_PARTS = {"expand": "linear1.0", "depthwise": "dwconv.0", "reduce": "linear2.0", "channel_attention": "eca.conv"}
_BLOCK = re.compile(r"blocks\.(\d+)\.(\w+)\.")
_PHI = re.compile(r"blocks\.steps\.(\d+)\.attention\.phi\.(\w+)\.(\w+)")


def infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Skipped blocks, and the form of Φ.

    A file whose unused attention was cut away shows the skipped blocks; others are taken as the released ones.
    """
    hidden, width = shape_of(state, "param_1.linear1.0.weight", SOURCE.name)
    kernel_size = shape_of(state, "param_1.dwconv.0.weight", SOURCE.name)[-1]
    parts = {(int(found[1]), found[2]) for found in map(_BLOCK.match, state) if found is not None}
    cut = sorted({block for block, _ in parts} - {block for block, part in parts if part == "attn"})
    return {
        "layers": tuple(cut) or _RELEASED_LAYERS,
        "expansion": hidden / width,
        "kernel_size": kernel_size,
        "residual": False,
        "init": "scratch",
    }


def map_keys(mapping: KeyMapping, model: nn.Module) -> None:
    """Fill every tensor of the model.

    Raises:
        CheckpointError: skipped blocks with gaps, which the authors' code does not compute as the paper has it.
    """
    layers = [step.plan.block for step in trunk_of(model).all_steps() if step.plan.attention.reads_z]
    if any(later != layer + 1 for layer, later in pairwise(layers)):
        raise CheckpointError(
            f"skipat.layers={tuple(layers)}: after a gap the authors' code reads what the last skipped block before it "
            "predicted, ours the newest attention; only consecutive layers can be imported"
        )
    for own in model.state_dict():
        phi = _PHI.fullmatch(own)
        mapping.use(own, own if phi is None else _phi_name(layers.index(int(phi[1])), phi[2], phi[3]))
    for layer in layers:
        parts = tuple(f"blocks.{layer}.{part}." for part in trunk_of(model).adapter.attention_parts)
        mapping.drop_below(parts, f"block {layer} reuses an earlier attention output; its own is never evaluated")
    for name in mapping.unexpected():
        position = re.match(r"param_([1-6])\.", name)
        if position is not None and int(position[1]) > len(layers):
            mapping.drop(name, f"only {len(layers)} blocks are skipped; this Φ is never evaluated")


def _phi_name(position: int, part: str, leaf: str) -> str:
    return f"param_{position + 1}.{_PARTS.get(part, part)}.{leaf}"


SOURCE = Source("skipat", "skipat", ("model", "state_dict_ema", "state_dict"), infer, map_keys)
