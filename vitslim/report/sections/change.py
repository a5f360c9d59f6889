"""Section: what was changed, step by step."""

from collections.abc import Sequence

from vitslim.methods.choice import Choice, OptionValue
from vitslim.report.commands import command
from vitslim.report.content import Element, Note, Table, absent, pictures
from vitslim.report.names import option_value
from vitslim.report.numbers import amount
from vitslim.report.parts import ReportParts
from vitslim.report.plan_figure import plan_picture
from vitslim.report.plan_rows import PlanRow, PlanRows


def change(parts: ReportParts) -> list[Element]:
    """What was chosen, then the plan as a strip of steps and as a table."""
    plan = parts.plan
    if plan is None:
        if parts.is_dense:
            return [Note("Nothing: this is a dense model.")]
        return [absent("Not known, the folder has no plan", command(parts, "convert"))]
    return [
        *(Note(f"{choice_words(one)}.", lead=f"{one.method}.{one.option}") for one in parts.choices),
        Note(_summary(plan)),
        *pictures(plan_picture(plan), columns="one"),
        _table(plan.rows),
    ]


def choice_words(choice: Choice) -> str:
    """What the analysis recommended for an option, what was used, and why where they differ."""
    used = f"used {_option(choice, choice.used)}"
    if choice.recommended == choice.used:
        return f"{used} as recommended"
    recommended = "" if choice.recommended is None else f"recommended {_option(choice, choice.recommended)}, "
    return f"{recommended}{used}, because {choice.reason}"


def _option(choice: Choice, value: OptionValue) -> str:
    name = "block" if choice.option == "layers" and len(value) == 1 else choice.option.replace("layers", "blocks")
    return f"{name} {option_value(choice.option, value)}"


def _summary(plan: PlanRows) -> str:
    rows, depth = plan.rows, plan.depth
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
    if plan.channels_kept < 1:
        found.append("the stream between them has {} of {} channels".format(*plan.channels))
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
