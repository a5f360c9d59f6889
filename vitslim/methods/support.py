"""Which methods compose: every ordered pair of their forms, checked on plans of four blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from vitslim.errors import VitslimError
from vitslim.methods.base import METHODS, Method
from vitslim.methods.convert import planned, read_options
from vitslim.plans import ModelPlan, ModelShape, dense_plan
from vitslim.plans.shape import vit_shape
from vitslim.trunk import Conversion

_TINY = vit_shape(width=48, depth=4, heads=3, image_size=(32, 32), patch=8)
_FIXED_STREAM = tuple(block.model_copy(update={"others_per_channel": {}}) for block in _TINY.blocks)

# What the checks of a plan ask a model for.
FAMILIES: dict[str, ModelShape] = {
    "ViT": _TINY,
    "ViT without prefix tokens": _TINY.model_copy(update={"prefix": 0, "has_class_token": False}),
    "EVA, mixed rotary": _TINY.model_copy(update={"family": "Eva", "positions_per_block": True, "prefix": 3}),
    "BEiT": _TINY.model_copy(update={"family": "Beit", "blocks": _FIXED_STREAM, "own_bias": True}),
}


class PairSupport(TypedDict):
    """One row: whether ``second`` can follow ``first`` on this family, and the reason if not."""

    first: str
    second: str
    family: str
    supported: bool
    reason: str


def method_forms() -> dict[str, tuple[Method, Mapping[str, Any]]]:
    """Every method in its example form, and in those that compose in another way."""
    found: dict[str, tuple[Method, Mapping[str, Any]]] = {}
    for name, method in METHODS.items():
        found[name] = (method, method.example)
        found |= {f"{name}, {form}": (method, options) for form, options in method.forms.items()}
    return found


def pair_support() -> list[PairSupport]:
    """Every ordered pair of forms of two methods, on every family."""
    return [
        PairSupport(first=first, second=second, family=family, supported=not reason, reason=reason)
        for family, shape in FAMILIES.items()
        for (first, second), reason in _reasons(dense_plan(shape)).items()
    ]


def support_cells(rows: Sequence[PairSupport]) -> tuple[list[list[str]], list[str]]:
    """The matrix of all families as text, the first form down and the second across, and the notes it refers to.

    A cell is ``yes``, or ``no [1]`` with the number of its reason; beside ``yes`` it is that of a family that differs.
    """
    names = list(dict.fromkeys(row["first"] for row in rows))
    by_pair: dict[tuple[str, str], list[PairSupport]] = {}
    for row in rows:
        by_pair.setdefault((row["first"], row["second"]), []).append(row)
    notes: list[str] = []
    lines = [["first \\ then", *names]]
    for first in names:
        found = (by_pair.get((first, second)) for second in names)
        lines.append([first, *("–" if pair is None else _cell(pair, notes) for pair in found)])
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


def _reasons(dense: ModelPlan) -> dict[tuple[str, str], str]:
    """Why a pair is refused on one family; empty where it is not."""
    forms = method_forms()
    alone = {name: _changed(dense, *form) for name, form in forms.items()}
    found: dict[tuple[str, str], str] = {}
    for first, plan in alone.items():
        for second, form in forms.items():
            if form[0] is forms[first][0]:
                continue
            refused = next((one for one in (plan, alone[second]) if isinstance(one, str)), None)
            result = (
                _changed(plan, *form, first=forms[first][0].name)
                if isinstance(plan, ModelPlan) and not refused
                else refused
            )
            found[first, second] = result if isinstance(result, str) else ""
    return found


def _changed(plan: ModelPlan, method: Method, options: Mapping[str, Any], first: str = "") -> ModelPlan | str:
    """The new plan, or the sentence with which it is refused."""
    history = (Conversion(first, {}),) if first else ()
    try:
        return planned(method, read_options(method, options), plan, None, history)
    except VitslimError as error:
        return str(error)
