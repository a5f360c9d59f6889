"""Section: what was changed, step by step."""

from collections.abc import Sequence
from typing import Any, cast

from vitslim.report.commands import command
from vitslim.report.content import Note, Piece, Table, absent, pictures
from vitslim.report.numbers import amount, block_list, plain
from vitslim.report.parts import Choice, ReportParts
from vitslim.report.plan_figure import plan_picture
from vitslim.report.plan_rows import PlanRow


def change(parts: ReportParts) -> list[Piece]:
    """What was chosen, then the plan as a strip of steps and as a table."""
    plan = parts.plan
    if plan is None:
        if parts.is_dense:
            return [Note("Nothing: this is a dense model.")]
        return [absent("Not known, the folder has no plan", command(parts, "convert"))]
    return [
        *map(_choice, parts.choices),
        Note(_summary(plan.rows, plan.depth)),
        *pictures(plan_picture(plan), columns="one"),
        _table(plan.rows),
    ]


def _choice(choice: Choice) -> Note:
    """What the analysis recommended beside what was used."""
    reason = f": {choice.reason.rstrip('.')}" if choice.reason else ""
    used, recommended = _value(choice.used), _value(choice.recommended)
    if choice.recommended is None:
        words = f"used {used}{reason}."
    elif choice.recommended == choice.used:
        words = f"used {used} as recommended{reason}."
    else:
        words = f"recommended {recommended}, used {used}{reason}."
    return Note(words, lead=f"{choice.method}.{choice.option}")


def _value(value: Any) -> str:
    if isinstance(value, list) and value and all(type(entry) is int for entry in cast("list[Any]", value)):
        blocks = cast("list[int]", value)
        return f"block{'' if len(blocks) == 1 else 's'} {block_list(blocks)}"
    return "nothing" if value is None else plain(value)


def _summary(rows: Sequence[PlanRow], depth: int) -> str:
    named = len({row.block for row in rows})
    counts = (
        (depth - named, "block of the dense model is dropped", "blocks of the dense model are dropped"),
        (_count(rows, "attention", "dense"), "step has another attention", "steps have another attention"),
        (_count(rows, "mlp", "dense"), "step has another MLP", "steps have another MLP"),
        (
            sum(row.tokens.share < 1 for row in rows),
            "step works on a part of the tokens",
            "steps work on a part of the tokens",
        ),
        (
            sum(row.shares_with is not None for row in rows),
            "step applies the weights of an earlier step again",
            "steps apply the weights of an earlier step again",
        ),
    )
    found = [f"{number} {one if number == 1 else many}" for number, one, many in counts if number > 0]
    head = f"{len(rows)} steps over {named} blocks"
    return f"{head}: {', '.join(found)}." if found else f"{head}, each of them an ordinary dense block."


def _count(rows: Sequence[PlanRow], axis: str, unchanged: str) -> int:
    return sum(getattr(row, axis).kind != unchanged for row in rows)


def _table(rows: Sequence[PlanRow]) -> Table:
    body = [
        [
            *(str(row.step), str(row.block)),
            *(part.words for part in (row.attention, row.tokens, row.mlp, row.weights)),
            amount(row.parameters),
            amount(row.macs, "MAC"),
        ]
        for row in rows
    ]
    header = ["Step", "Block", "Attention", "Tokens", "MLP", "Weights", "Parameters", "MACs"]
    return Table("Every step of the plan.", header, body, words=6)
