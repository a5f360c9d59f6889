"""Sections: where the run took place, how to repeat it."""

from typing import Any, cast

from vitslim.report.commands import recipe_command, recipe_of
from vitslim.report.documents import RunConfig
from vitslim.report.markup import Markup, element, join, paragraph, table
from vitslim.report.numbers import flatten
from vitslim.report.parts import ReportParts
from vitslim.report.sections.absent import absent


def environment(parts: ReportParts) -> Markup:
    """Hardware and versions as they were recorded."""
    versions = parts.config.versions if parts.config else {}
    facts = flatten({"conversion": versions} if versions else {}) | flatten(parts.environment or {})
    if not facts:
        return absent("Not recorded; for this machine", "vitslim doctor")
    known = "Only the versions of the conversion are known: the folder was not written by a recipe."
    missing = [] if parts.environment else [paragraph(known, class_="absent")]
    rows = [[name, value] for name, value in facts.items()]
    body = element("div", table("Versions and hardware.", ("Name", "Value"), rows, text_columns=2), class_="facts")
    return join([*missing, body])


def reproduction(parts: ReportParts) -> Markup:
    """The recipe where there is one, and the conversion in Python."""
    pieces: list[Markup] = []
    if parts.recipe is not None:
        pieces += [
            paragraph("Save this recipe as ", element("code", "recipe.yaml"), " and run it:"),
            _listing(recipe_command(parts)),
            _listing(parts.recipe.rstrip("\n")),
        ]
    else:
        sentence = (
            "The folder has no recipe.yaml: the stages were run one by one, and their options are not recorded here."
        )
        pieces.append(paragraph(sentence, class_="absent"))
    if parts.config is not None and parts.config.base_name is not None:
        pieces += [
            paragraph("The conversion alone, in Python:"),
            _listing(conversion_code(parts, parts.config, parts.config.base_name)),
        ]
    return join(pieces)


def conversion_code(parts: ReportParts, config: RunConfig, name: str) -> str:
    """Python that makes the converted model, before any training, from the dense one."""
    options: dict[str, Any] = config.base.get("options") or {}
    opened = _open_by_hand(name, options) if name.startswith(":") else _open_named(parts, name, options)
    verb = "model = vitslim.convert"
    return "\n".join([*opened, *(_call(verb, ["model", repr(one.method)], one.options) for one in config.conversions)])


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


def _listing(text: str) -> Markup:
    return element("pre", element("code", text), tabindex="0")
