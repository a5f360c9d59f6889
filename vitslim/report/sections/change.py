"""Section: what was changed, step by step."""

from typing import Any

from vitslim.report.commands import convert_command
from vitslim.report.documents import Choice, PlanStep
from vitslim.report.markup import Markup, element, figure, join, paragraph, table
from vitslim.report.numbers import amount, block_list, plain
from vitslim.report.parts import ReportParts
from vitslim.report.sections.absent import absent
from vitslim.report.strip import plan_key, plan_strip


def change(parts: ReportParts) -> Markup:
    """What was chosen, then the plan as a strip of steps and as a table."""
    plan = parts.plan
    if not plan:
        is_dense = parts.config is not None and not parts.config.conversions
        return (
            paragraph("Nothing: this is a dense model.")
            if is_dense
            else absent("Not known, the folder has no plan", convert_command(parts))
        )
    is_converted = parts.config is None or bool(parts.config.conversions)
    choices = [paragraph(choice_sentence(one)) for one in parts.choices]
    summary = paragraph(_summary(plan, is_converted=is_converted))
    strip = figure("The plan, from the first step to the last", plan_strip(plan))
    return join([*choices, summary, strip, plan_key(plan), _plan_table(plan)])


def choice_sentence(choice: Choice) -> Markup:
    """What the analysis recommended beside what was used."""
    reason = f": {choice.reason.rstrip('.')}" if choice.reason else ""
    if choice.recommended is None:
        words = f"used {_value(choice.used)}{reason}."
    elif choice.recommended == choice.used:
        words = f"used {_value(choice.used)} as recommended{reason}."
    else:
        words = f"recommended {_value(choice.recommended)}, used {_value(choice.used)}{reason}."
    return join([element("strong", f"{choice.method}.{choice.option}: "), words])


def _value(value: Any) -> str:
    if isinstance(value, list) and value and all(type(entry) is int for entry in value):
        return f"block{'' if len(value) == 1 else 's'} {block_list(value)}"
    return "nothing" if value is None else plain(value)


def _summary(plan: list[PlanStep], *, is_converted: bool) -> str:
    blocks = len({step.block for step in plan})
    attend = [step.attention for step in plan]
    counted = (
        (sum(step.reuses for step in plan), "an earlier attention output instead of computing its own", "take"),
        (attend.count("sparse"), "only to the keys that were chosen for each query", "attend"),
        (attend.count("sliced"), "within groups of tokens", "attend"),
        (sum(step.drops_tokens for step in plan), "on a part of the tokens", "run"),
        (sum(step.shares_with is not None for step in plan), "the weights of an earlier step again", "apply"),
    )
    sentences = [f"The model walks {len(plan)} steps over {blocks} blocks."]
    sentences += [f"{n} of them {verb}{'s' if n == 1 else ''} {what}." for n, what, verb in counted if n]
    if not any(step.converted for step in plan):
        again, unchanged = "Every step is an ordinary dense block again.", "All of them are dense: nothing was changed."
        sentences.append(again if is_converted else unchanged)
    return " ".join(sentences)


def _plan_table(plan: list[PlanStep]) -> Markup:
    rows = [
        [str(step.step), str(step.block), step.mixing, step.tokens, step.weights, amount(step.parameters)]
        for step in plan
    ]
    header = ("Step", "Block", "Mixing", "Tokens", "Weights", "Parameters")
    return table("Every step of the plan.", header, rows, text_columns=5)
