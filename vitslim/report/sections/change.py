"""Section: what was changed, step by step."""

from vitslim.report.documents import PlanStep
from vitslim.report.markup import Markup, figure, join, paragraph, table
from vitslim.report.numbers import amount
from vitslim.report.parts import ReportParts
from vitslim.report.sections.absent import absent
from vitslim.report.strip import plan_key, plan_strip


def change(parts: ReportParts) -> Markup:
    """The plan as a strip of steps and as a table."""
    plan = parts.plan
    if not plan:
        return absent("Not known, the folder has no plan", "vitslim convert …")
    strip = figure("The plan, from the first step to the last", plan_strip(plan))
    return join([paragraph(_summary(plan)), strip, plan_key(plan), _plan_table(plan)])


def _summary(plan: list[PlanStep]) -> str:
    blocks = len({step.block for step in plan})
    reusing = [step for step in plan if step.reuses]
    fewer_tokens = [step for step in plan if step.kept_tokens]
    sharing = [step for step in plan if step.shares_with is not None]
    sentences = [f"The model walks {len(plan)} steps over {blocks} blocks."]
    if reusing:
        sentences.append(f"{len(reusing)} of them take an earlier attention output instead of computing their own.")
    if fewer_tokens:
        sentences.append(f"{len(fewer_tokens)} of them run on a part of the tokens.")
    if sharing:
        sentences.append(f"{len(sharing)} of them apply weights of an earlier step again.")
    if all(step.mixing == "dense" and not step.kept_tokens and step.shares_with is None for step in plan):
        sentences.append("All of them are dense: nothing was changed.")
    return " ".join(sentences)


def _plan_table(plan: list[PlanStep]) -> Markup:
    rows = [
        [str(step.step), str(step.block), step.mixing, step.tokens, step.weights, amount(step.parameters)]
        for step in plan
    ]
    header = ("Step", "Block", "Mixing", "Tokens", "Weights", "Parameters")
    return table("Every step of the plan.", header, rows, text_columns=5)
