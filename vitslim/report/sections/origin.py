"""Sections: where the run took place, how to repeat it."""

from typing import Any, cast

from vitslim.checkpoint import SavedModel
from vitslim.report.commands import command, recipe_of
from vitslim.report.content import Element, Listing, Note, absent, facts
from vitslim.report.numbers import flatten
from vitslim.report.parts import ReportParts


def environment(parts: ReportParts) -> list[Element]:
    """Hardware and versions as they were recorded."""
    versions = {"conversion": parts.config.versions} if parts.config else {}
    found = flatten(versions) | flatten(dict(parts.environment))
    if not found:
        return [absent("Not recorded; for this machine", "vitslim doctor")]
    known = "Only the versions of the conversion are known: the folder was not written by a recipe."
    return [*([] if parts.environment else [Note(known, "absent")]), *facts("Versions and hardware.", found)]


def reproduction(parts: ReportParts) -> list[Element]:
    """The recipe where there is one, and the conversion in Python."""
    elements: list[Element] = []
    if parts.recipe is None:
        missing = "The folder has no recipe.yaml: the stages were run one by one, their options are not recorded here."
        elements.append(Note(missing, "absent"))
    else:
        elements += [
            Note("Save this recipe as recipe.yaml and run it:"),
            Listing([command(parts, "run")]),
            Listing(parts.recipe.rstrip("\n").split("\n")),
        ]
    if parts.config is not None:
        code = conversion_code(parts, parts.config).split("\n")
        elements += [Note("The conversion alone, in Python:"), Listing(code)]
    return elements


def conversion_code(parts: ReportParts, config: SavedModel) -> str:
    """Python that makes the converted model, before any training, from the dense one."""
    name, options = config.base.architecture, config.base.options
    opened = _open_by_hand(name, options) if name.startswith(":") else _open_named(parts, name, options)
    call = "model = vitslim.convert"
    return "\n".join([*opened, *(_call(call, ["model", repr(one.method)], one.options) for one in config.conversions)])


def _open_by_hand(name: str, options: dict[str, Any]) -> list[str]:
    described = _call("BaseModel", [f"architecture={name!r}"], {"options": options})
    return [
        "import vitslim",
        "from vitslim.models import BaseModel, build_base",
        "",
        "# A model of your own: built anew with random weights, into which yours are to be loaded.",
        f"model = build_base({described})",
    ]


def _open_named(parts: ReportParts, name: str, options: dict[str, Any]) -> list[str]:
    model = recipe_of(parts).get("model")
    is_random = isinstance(model, dict) and cast("dict[str, Any]", model).get("pretrained") is False
    random = {"pretrained": False} if is_random else {}
    return ["import vitslim", "", _call("model = vitslim.open_model", [repr(name)], random | options)]


def _call(what: str, arguments: list[str], options: dict[str, Any]) -> str:
    named = [f"{option}={_frozen(value)!r}" for option, value in options.items() if option != "method"]
    return f"{what}({', '.join([*arguments, *named])})"


def _frozen(value: Any) -> Any:
    """JSON knows lists alone; what they were made from, and what models and methods take, are tuples."""
    return tuple(map(_frozen, cast("list[Any]", value))) if isinstance(value, list) else value
