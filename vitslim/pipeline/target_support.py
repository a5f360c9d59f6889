"""What of each method reaches an exported file, asked of the plans that the methods make."""

from __future__ import annotations

from vitslim.methods import planned, read_options
from vitslim.methods.support import FAMILIES, method_forms
from vitslim.plans import dense_plan
from vitslim.shapes import Result


class FormSupport(Result):
    """One form of a method in a file; every target writes them all.

    Attributes:
        form: as ``vitslim list pairs`` names it.
        one_size: why the file takes one image size only; ``None`` where height and width may be left free.
        chooses: tokens or keys are chosen by comparing numbers, so that ``verify`` compares on the file's own choices.
    """

    form: str
    one_size: str | None
    chooses: bool


def form_support() -> list[FormSupport]:
    """Every form of every method."""
    found: list[FormSupport] = []
    for form, (method, options) in method_forms().items():
        plan = planned(method, read_options(method, options), dense_plan(FAMILIES["ViT"]))
        choices = [choice for step in plan.steps for choice in (step.attention, step.tokens)]
        reasons = [choice.fixed_size for choice in choices if choice.fixed_size]
        found.append(
            FormSupport(
                form=form,
                one_size=reasons[-1] if reasons else None,
                chooses=any(choice.picks for choice in choices),
            )
        )
    return found
