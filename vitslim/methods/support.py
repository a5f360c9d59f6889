"""Which methods compose: every ordered pair of their forms, tried on a tiny model of each family."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypedDict

import torch
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitslim.errors import VitslimError
from vitslim.methods.convert import convert


@dataclass(frozen=True)
class Form:
    """A method as people use it: with its defaults, or with the options that change what composes with it."""

    method: str
    options: Mapping[str, Any]


FORMS: dict[str, Form] = {
    "skipat": Form("skipat", {}),
    "evo_vit": Form("evo_vit", {}),
    "sparsifiner": Form("sparsifiner", {}),
    "sparsifiner, pruning": Form("sparsifiner", {"token_keep_rate": 0.7}),
    "sret": Form("sret", {}),
    "sret, sliced": Form("sret", {"slices": (2, 4)}),
    "sret, repeated": Form("sret", {"recursions": 2}),
}

# 4 blocks, 16 patches on a grid of 4 × 4, heads of 16.
_TINY: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}

# One per way in which a method meets a block: order of norms, position terms, operands of the attention.
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "ViT": partial(VisionTransformer, **_TINY, init_values=0.1),
    "EVA, mixed rotary": partial(
        Eva, **_TINY, use_rot_pos_emb=True, rope_type="mixed", use_abs_pos_emb=False, num_reg_tokens=2
    ),
    "EVA, post-norm": partial(Eva, **_TINY, use_post_norm=True),
    "BEiT": partial(Beit, **_TINY, use_rel_pos_bias=True, use_shared_rel_pos_bias=True),
}


class PairSupport(TypedDict):
    """One row: whether ``second`` can follow ``first`` on this family, and the reason if not."""

    first: str
    second: str
    family: str
    supported: bool
    reason: str


def pair_support() -> list[PairSupport]:
    """Every ordered pair of forms on every family; the models are built without weights, in four blocks."""
    return [
        PairSupport(first=first, second=second, family=family, supported=not reason, reason=reason)
        for family, build in FAMILIES.items()
        for (first, second), reason in _reasons(build).items()
    ]


def support_cells(rows: Sequence[PairSupport]) -> tuple[list[list[str]], list[str]]:
    """The matrix of all families as text, the first form down and the second across, and the notes it refers to.

    A cell is ``yes``, or ``no [1]`` with the number of its reason; beside ``yes`` it is that of a family that differs.
    """
    names = list(dict.fromkeys(row["first"] for row in rows))
    notes: list[str] = []
    lines = [["first \\ then", *names]]
    for first in names:
        line = [first]
        for second in names:
            if FORMS[first].method == FORMS[second].method:
                line.append("–")
                continue
            line.append(_cell([row for row in rows if (row["first"], row["second"]) == (first, second)], notes))
        lines.append(line)
    return lines, [f"[{number}] {note}" for number, note in enumerate(notes, start=1)]


def _cell(rows: Sequence[PairSupport], notes: list[str]) -> str:
    """One pair on all families; reasons not met before join the notes."""
    supported = any(row["supported"] for row in rows)
    most = Counter(row["reason"] for row in rows if not row["supported"]).most_common(1)
    numbers: list[int] = []
    for row in rows:
        if row["supported"]:
            continue
        general = not supported and row["reason"] == most[0][0]
        note = row["reason"] if general else f"{row['family']}: {row['reason']}"
        if note not in notes:
            notes.append(note)
        if notes.index(note) + 1 not in numbers:
            numbers.append(notes.index(note) + 1)
    return " ".join(["yes" if supported else "no", *(f"[{number}]" for number in sorted(numbers))])


def _reasons(build: Callable[[], nn.Module]) -> dict[tuple[str, str], str]:
    """Why a pair is refused on one family; empty where it is not."""
    with torch.device("meta"):
        dense = build()
    alone = {name: _converted(dense, form) for name, form in FORMS.items()}
    found: dict[tuple[str, str], str] = {}
    for first, model in alone.items():
        for second, form in FORMS.items():
            refused = next((one for one in (model, alone[second]) if isinstance(one, str)), None)
            result = _converted(model, form) if refused is None and isinstance(model, nn.Module) else refused
            found[first, second] = result if isinstance(result, str) else ""
    return found


def _converted(model: nn.Module, form: Form) -> nn.Module | str:
    """The converted model, or the sentence with which it is refused."""
    try:
        return convert(model, form.method, **form.options)
    except VitslimError as error:
        return str(error)
