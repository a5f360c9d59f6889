"""Evo-ViT in its DeiT form, as the authors released it (YifanXu74/Evo-ViT).

Theirs keeps a block's parts in lists of their own: ``norms``, ``qks``, ``vs``, ``projs`` for the attention, ``blocks``
for the MLP. The classifier reads the mean of all patches, normalised after the mean. Shares of kept patches and rates
of g are not in the file: 0.5 from block 4 on, as in all released models. Their LeViT form has another network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vitslim.authors.key_mapping import KeyMapping, Source, shape_of

_ATTENTION = re.compile(r"blocks\.(\d+)\.(norm1|attn\.qkv|attn\.proj)\.(\w+)")
_LISTS = {"norm1": "norms.{}.{}", "attn.proj": "projs.{}.{}"}


def infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What all DeiT models of the authors have in common; the file says nothing beyond."""
    shape_of(state, "qks.0.qk.weight", SOURCE.name)
    return {"readout": "mean", "schedule": "stage", "placeholders": "frozen"}


def map_keys(mapping: KeyMapping, model: nn.Module) -> None:
    """Fill every tensor of the model."""
    for own in model.state_dict():
        attention = _ATTENTION.fullmatch(own)
        if attention is None:
            # timm's name of a norm behind the mean.
            mapping.use(own, re.sub(r"^fc_norm\.", "norm.", own))
        elif attention[2] == "attn.qkv":
            block, leaf = attention[1], attention[3]
            mapping.join(own, f"qks.{block}.qk.{leaf}", f"vs.{block}.v.{leaf}")
        else:
            mapping.use(own, _LISTS[attention[2]].format(attention[1], attention[3]))
    mapping.drop_below(("head_cls.", "norm_cls."), "the second head, on the class token, is for training only")


SOURCE = Source("evo_vit", "evo_vit", ("model",), infer, map_keys)
