"""Sections: where the run took place, how to repeat it."""

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
        return absent("Not recorded", "vitslim doctor")
    missing = (
        [absent("Only the versions of the conversion are known", "vitslim run …")] if not parts.environment else []
    )
    rows = [[name, value] for name, value in facts.items()]
    body = element("div", table("Versions and hardware.", ("Name", "Value"), rows, text_columns=2), class_="facts")
    return join([*missing, body])


def reproduction(parts: ReportParts) -> Markup:
    """The recipe where there is one, and the conversion in Python."""
    pieces: list[Markup] = []
    if parts.recipe is not None:
        pieces += [
            paragraph("Save this recipe as ", element("code", "recipe.yaml"), " and run it:"),
            _listing("vitslim run recipe.yaml"),
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
            _listing(_python(parts.config, parts.config.base_name)),
        ]
    return join(pieces)


def _python(config: RunConfig, name: str) -> str:
    lines = ["import vitslim", ""]
    model = repr(name)
    for one in config.conversions:
        options = "".join(f", {option}={value!r}" for option, value in one.options.items() if option != "method")
        lines.append(f"model = vitslim.convert({model}, {one.method!r}{options})")
        model = "model"
    return "\n".join(lines if config.conversions else [*lines, f"# {name} is used as it is"])


def _listing(text: str) -> Markup:
    return element("pre", element("code", text), tabindex="0")
