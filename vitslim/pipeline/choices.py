"""What an analysis recommends to the methods of a recipe, with what they use."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from vitslim.errors import ConfigError, VitslimError
from vitslim.methods import Evidence, Method, MethodConfig, planned, read_method
from vitslim.methods.choice import Choice, OptionValue
from vitslim.models import describe
from vitslim.plans import ModelPlan, read_plan_file
from vitslim.recipe import Recipe
from vitslim.trunk import Conversion, build, is_converted, plan_of, trunk_of

if TYPE_CHECKING:
    from vitslim.analysis import AnalysisReport

CHOICES_FILE = "choices.json"


@dataclass(frozen=True)
class Advice:
    """What the methods read of an analysis.

    Args:
        found: the analysis as it is.
        taken: the same with blocks that all methods of the recipe accept.
        reason: why these blocks are taken.
    """

    found: Evidence
    taken: Evidence
    reason: str = "the analysis recommends them"


def reads_analysis(recipe: Recipe) -> bool:
    """Whether a conversion of a recipe leaves something to an analysis."""
    return any(method.reads_analysis(config) for method, config in map(_read, recipe.convert))


def plan_all(
    entries: Iterable[Mapping[str, Any]],
    plan: ModelPlan,
    advice: Advice | None = None,
    history: tuple[Conversion, ...] = (),
) -> tuple[ModelPlan, tuple[Conversion, ...], list[Choice]]:
    """The plan that the conversions of a recipe lead to one after the other, their history, and what was chosen.

    Raises:
        ConfigError: as ``planned`` does.
    """
    choices: list[Choice] = []
    for entry in entries:
        method, config = _read(entry)
        evidence = None if advice is None else advice.taken
        after = planned(method, config, plan, evidence, history)
        if method.advised is not None:
            recommended = None if advice is None else _recommended(method, config, plan, advice.found, history)
            used = method.chosen(plan, after)
            # Nothing of the sort is chosen where the method leaves it alone, as linear MLPs do the widths.
            if used != method.chosen(plan, plan) or recommended not in (None, used):
                reason = _reason(method, config, advice, followed=used == recommended)
                choice = Choice(
                    method=method.name, option=method.advised, recommended=recommended, used=used, reason=reason
                )
                choices.append(choice)
        plan = after
        history = (*history, Conversion(method.name, config.model_dump(mode="json", exclude_defaults=True)))
    return plan, history, choices


def convert_all(recipe: Recipe, model: nn.Module, advice: Advice | None = None) -> tuple[nn.Module, list[Choice]]:
    """Apply the plan and the conversions of a recipe; the given model stays as it is.

    Raises:
        ConfigError, UnsupportedModelError: as ``convert`` does.
    """
    if not recipe.convert and recipe.plan is None:
        return copy.deepcopy(model), []
    plan, before = first_plan(recipe, model)
    plan, history, choices = plan_all(recipe.convert, plan, advice, before)
    base = trunk_of(model).base if is_converted(model) else describe(model)
    return build(plan, model, history=history, base=base), choices


def first_plan(recipe: Recipe, model: nn.Module) -> tuple[ModelPlan, tuple[Conversion, ...]]:
    """What the methods of a recipe begin with: the plan that it names, else the model's; and the history so far."""
    history = trunk_of(model).history if is_converted(model) else ()
    return plan_of(model) if recipe.plan is None else read_plan_file(recipe.plan), history


def advise(entries: Sequence[Mapping[str, Any]], plan: ModelPlan, report: AnalysisReport) -> Advice:
    """An analysis as the methods should read it: with blocks to reuse that all of them accept.

    Where the recommended blocks are refused, they are tried in the order of the analysis' preference, and each is taken
    that can be added to those taken so far; what was refused is tried again after every success. That is not every
    subset, but constraints between methods concern neighbouring steps, and nothing can be added to what it finds. Where
    none is accepted, the other blocks follow in the same order, as many as were recommended.

    Args:
        plan: of the dense model.

    Raises:
        ConfigError: no block is accepted.
    """
    from vitslim.analysis import by_preference

    refusal = _refusal(entries, plan, report)
    if refusal is None:
        return Advice(report, report)

    def refusal_of(layers: list[int]) -> VitslimError | None:
        return _refusal(entries, plan, _limited(report, layers))

    order, recommended = by_preference(report), report.recommended.layers
    kept, reasons = _largest_accepted([layer for layer in order if layer in recommended], refusal_of, len(recommended))
    if kept:
        left_out = [f"block {layer} left out: {reason}" for layer, reason in sorted(reasons.items())]
        return Advice(report, _limited(report, kept), "; ".join([Advice.reason, *left_out]))
    kept, _ = _largest_accepted(order, refusal_of, len(recommended))
    if not kept:
        raise refusal
    reason = (
        f"none of the recommended ones can be the first to join the other methods ({refusal}); these are the next in "
        "the analysis' order that can"
    )
    return Advice(report, _limited(report, kept), reason)


def forecast(recipe: Recipe, plan: ModelPlan, history: tuple[Conversion, ...] = ()) -> tuple[ModelPlan, list[Choice]]:
    """The plan of a run as far as it is known before its analysis.

    What the analysis decides is filled in with the usual blocks, or with a single one where these are refused; it is
    enough that one block is accepted.

    Raises:
        ConfigError: an option asks for an analysis that the recipe does not make, or no block is accepted.
    """
    reading = [method.reads_analysis(config) for method, config in map(_read, recipe.convert)]
    if recipe.analyze is None:
        for name, value in (item for entry in recipe.convert for item in entry.items()):
            if value == "auto":
                raise ConfigError(f"{name}: auto needs the analysis of the same recipe; add an analyze section")
    if recipe.analyze is None or not any(reading):
        planned_now, _, choices = plan_all(recipe.convert, plan, None, history)
        return planned_now, choices
    usual = [_usual(entry) if reads else entry for entry, reads in zip(recipe.convert, reading, strict=True)]
    try:
        planned_now, _, choices = plan_all(usual, plan, None, history)
    except VitslimError as refusal:
        open_entries = [index for index, reads in enumerate(reading) if reads]
        planned_now, choices = _with_one_block(usual, open_entries, plan, history, refusal)
    undecided = "the analysis decides when the recipe is run; until then these stand for what it recommends"
    by_method = {entry["method"] for entry, reads in zip(recipe.convert, reading, strict=True) if reads}
    return planned_now, [
        one.model_copy(update={"recommended": None, "reason": undecided}) if one.method in by_method else one
        for one in choices
    ]


def _with_one_block(
    entries: Sequence[Mapping[str, Any]],
    left_open: Sequence[int],
    plan: ModelPlan,
    history: tuple[Conversion, ...],
    refusal: VitslimError,
) -> tuple[ModelPlan, list[Choice]]:
    """With one block in place of the paper's in the entries that are left open, the first that is accepted."""
    taking = {index for index in left_open if entries[index].get("layers") == "paper"}
    # One block has nothing to choose from: what is said of it is what there is to say.
    of_one: VitslimError | None = None
    for layer in range(1, plan.depth) if taking else ():
        single = [{**entry, "layers": (layer,)} if index in taking else entry for index, entry in enumerate(entries)]
        try:
            planned_now, _, choices = plan_all(single, plan, None, history)
        except VitslimError as error:
            of_one = of_one or error
            continue
        return planned_now, choices
    raise of_one or refusal


def _largest_accepted(
    candidates: Sequence[int], refusal_of: Callable[[list[int]], VitslimError | None], most: int
) -> tuple[list[int], dict[int, str]]:
    """The candidates kept, ``most`` of them at most, and for the others why they cannot be added."""
    kept: list[int] = []
    refused: dict[int, str] = {}
    left = list(candidates)
    while left and len(kept) < most:
        layer = left.pop(0)
        refusal = refusal_of([*kept, layer])
        if refusal is None:
            kept.append(layer)
            left = [other for other in candidates if other not in kept]
            refused = {}
        else:
            refused[layer] = str(refusal)
    return kept, refused


def _refusal(entries: Sequence[Mapping[str, Any]], plan: ModelPlan, report: Evidence) -> VitslimError | None:
    try:
        plan_all(entries, plan, Advice(report, report))
    except VitslimError as error:
        return error
    return None


def _limited(report: AnalysisReport, layers: Iterable[int]) -> AnalysisReport:
    recommended = report.recommended.model_copy(update={"layers": sorted(layers)})
    return report.model_copy(update={"recommended": recommended})


def _read(entry: Mapping[str, Any]) -> tuple[Method, MethodConfig]:
    return read_method(str(entry["method"]), {name: value for name, value in entry.items() if name != "method"})


def _usual(entry: Mapping[str, Any]) -> dict[str, Any]:
    method, _ = _read(entry)
    return dict(entry) if method.advised is None else {**entry, method.advised: method.usual}


def _recommended(
    method: Method, config: MethodConfig, plan: ModelPlan, found: Evidence, history: tuple[Conversion, ...]
) -> OptionValue | None:
    """The value of the option if it were left to the analysis."""
    assert method.advised is not None
    try:
        left_open = config.model_copy(update={method.advised: None})
        return method.chosen(plan, method.change(plan, left_open, found))
    except ConfigError:
        return None


def _reason(method: Method, config: MethodConfig, advice: Advice | None, *, followed: bool) -> str:
    if not method.reads_analysis(config):
        asks = getattr(config, str(method.advised)) == method.usual
        return f"{method.advised}={method.usual} asks for them" if asks else "the options name them"
    if advice is None:
        return "they are the usual ones, and no analysis was made"
    # What an analysis may not choose for one method is no reason for another, which follows it.
    return Advice.reason if followed else advice.reason
