"""What an analysis recommends to the methods of a recipe, with what they use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from vitslim.errors import ConfigError, VitslimError
from vitslim.methods import convert, method_named, plan_of, read_options
from vitslim.methods.base import Evidence, Method
from vitslim.recipe import Recipe
from vitslim.shapes import Config, Result
from vitslim.trunk import trunk_of

if TYPE_CHECKING:
    from vitslim.analysis import AnalysisReport

CHOICES_FILE = "choices.json"


class Choice(Result):
    """Which blocks a method takes: one entry of choices.json.

    Attributes:
        option: of the method's config.
        recommended: by the analysis of the dense model, sorted; None without one, or where it has nothing to say.
        used: sorted; for groups of blocks all that are in one.
        reason: why these are used, a sentence without its full stop.
    """

    method: str
    option: str
    recommended: list[int] | None
    used: list[int]
    reason: str


@dataclass(frozen=True)
class Advice:
    """What the methods are told of an analysis.

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


def convert_all(
    entries: Iterable[Mapping[str, Any]], model: nn.Module, advice: Advice | None = None
) -> tuple[nn.Module, list[Choice]]:
    """Apply the conversions of a recipe one after the other; the given model stays as it is.

    Raises:
        ConfigError, UnsupportedModelError: as ``convert`` does.
    """
    choices: list[Choice] = []
    for entry in entries:
        method, config = _read(entry)
        recommended = None if advice is None else _recommended(method, config, model, advice.found)
        model = convert(model, config, analysis=None if advice is None else advice.taken)
        if method.advised is not None:
            used = trunk_of(model).history[-1].options[method.advised.option]
            choices.append(
                Choice(
                    method=method.name,
                    option=method.advised.option,
                    recommended=recommended,
                    used=_blocks(used),
                    reason=_reason(method, config, advice) + _grouping(used),
                )
            )
    return model, choices


def advise(entries: Sequence[Mapping[str, Any]], dense: nn.Module, report: AnalysisReport) -> Advice:
    """An analysis as the methods shall read it: with blocks that all of them accept.

    Where the recommended blocks are refused, they are tried in the order of the analysis' preference, and each is taken
    that can be added to those taken so far; what was refused is tried again after every success. That is not every
    subset, but constraints between methods concern neighbouring steps, and nothing can be added to what it finds. Where
    none is accepted, the other blocks follow in the same order, as many as were recommended.

    Args:
        dense: the model that is converted, on the meta device.

    Raises:
        ConfigError, UnsupportedModelError: no block is accepted.
    """
    from vitslim.analysis import by_preference

    refusal = _refusal(entries, dense, report)
    if refusal is None:
        return Advice(report, report)

    def refusal_of(layers: list[int]) -> VitslimError | None:
        return _refusal(entries, dense, _limited(report, layers))

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


def try_conversions(recipe: Recipe, dense: nn.Module) -> tuple[nn.Module, list[Choice]]:
    """Convert as a run would, as far as that is known before its analysis.

    What the analysis decides is filled in with the usual blocks, or with a single one where these are refused; it is
    enough that one block is accepted.

    Args:
        dense: the model that is converted, on the meta device.

    Raises:
        ConfigError: an option asks for an analysis that the recipe does not make, or no block is accepted.
        UnsupportedModelError: a method refuses the model.
    """
    reading = [method.reads_analysis(config) for method, config in map(_read, recipe.convert)]
    if recipe.analyze is None:
        for name, value in (item for entry in recipe.convert for item in entry.items()):
            if value == "auto":
                raise ConfigError(f"{name}: auto needs the analysis of the same recipe; add an analyze section")
    if recipe.analyze is None or not any(reading):
        return convert_all(recipe.convert, dense)
    usual = [_usual(entry) if reads else entry for entry, reads in zip(recipe.convert, reading, strict=True)]
    try:
        model, choices = convert_all(usual, dense)
    except VitslimError:
        model, choices = _with_one_block(recipe.convert, dense)
    undecided = "the analysis decides when the recipe is run; until then these stand for what it recommends"
    by_method = {entry["method"] for entry, reads in zip(recipe.convert, reading, strict=True) if reads}
    return model, [
        one.model_copy(update={"recommended": None, "reason": undecided}) if one.method in by_method else one
        for one in choices
    ]


@dataclass(frozen=True)
class _Supposed:
    """An analysis that recommends one block and knows nothing else."""

    recommended: Mapping[str, Any]
    cka: Mapping[str, Any]


def _with_one_block(entries: Sequence[Mapping[str, Any]], dense: nn.Module) -> tuple[nn.Module, list[Choice]]:
    depth = plan_of(dense).depth
    refusal: VitslimError | None = None
    for layer in range(1, depth):
        supposed = _Supposed({"layers": [layer]}, {"block": [[None] * depth] * depth})
        try:
            return convert_all(entries, dense, Advice(supposed, supposed))
        except VitslimError as error:
            refusal = refusal or error
    # One block has nothing to choose from: what the method says of it is what there is to say.
    raise refusal or ConfigError(f"a model of {depth} block has none whose attention can be reused")


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


def _refusal(entries: Sequence[Mapping[str, Any]], dense: nn.Module, report: Evidence) -> VitslimError | None:
    try:
        convert_all(entries, dense, Advice(report, report))
    except VitslimError as error:
        return error
    return None


def _limited(report: AnalysisReport, layers: Iterable[int]) -> AnalysisReport:
    recommended = report.recommended.model_copy(update={"layers": sorted(layers)})
    return report.model_copy(update={"recommended": recommended})


def _read(entry: Mapping[str, Any]) -> tuple[Method, Config]:
    method = method_named(str(entry["method"]))
    return method, read_options(method, {name: value for name, value in entry.items() if name != "method"})


def _usual(entry: Mapping[str, Any]) -> dict[str, Any]:
    advised = method_named(str(entry["method"])).advised
    return dict(entry) if advised is None else {**entry, advised.option: advised.usual}


def _recommended(method: Method, config: Config, model: nn.Module, found: Evidence) -> list[int] | None:
    if method.advised is None:
        return None
    try:
        return _blocks(method.advised.recommend(config, plan_of(model), found))
    except ConfigError:
        return None


def _reason(method: Method, config: Config, advice: Advice | None) -> str:
    assert method.advised is not None
    given = getattr(config, method.advised.option)
    if given == method.advised.usual:
        return f"{method.advised.option}={method.advised.usual} asks for them"
    if given not in (None, "auto"):
        return "the options name them"
    if advice is None:
        return "they are the usual ones, and no analysis was made"
    return advice.reason


def _blocks(used: Iterable[Any]) -> list[int]:
    """Sorted blocks, also of groups of them."""
    return sorted(
        block for part in used for block in (cast("Iterable[int]", part) if isinstance(part, list | tuple) else (part,))
    )


def _grouping(used: Sequence[Any]) -> str:
    groups = [cast("Sequence[int]", part) for part in used if isinstance(part, list | tuple)]
    return f" (groups {'; '.join(', '.join(map(str, group)) for group in groups)})" if groups else ""
