"""The report page: its sections in order, and writing it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from vitslim.files import write_text
from vitslim.report.markup import Markup, element
from vitslim.report.parts import ReportParts, read_parts
from vitslim.report.sections.accuracy import accuracy
from vitslim.report.sections.change import change
from vitslim.report.sections.headline import headline
from vitslim.report.sections.origin import environment, reproduction
from vitslim.report.sections.parity import parity
from vitslim.report.sections.redundancy import redundancy
from vitslim.report.sections.speed import speed
from vitslim.report.sections.training import training
from vitslim.report.style import STYLE_SHEET

GENERATOR = element("meta", name="generator", content="vitslim")
_HEAD_BYTES = 4096  # of a page, in which its generator is named

Section = Callable[[ReportParts], Markup]

# anchor, name in the navigation, heading, content
SECTIONS: tuple[tuple[str, str, str, Section], ...] = (
    ("redundancy", "Redundancy", "What was redundant", redundancy),
    ("change", "Change", "What was changed", change),
    ("training", "Training", "How it was trained", training),
    ("accuracy", "Accuracy", "What it costs in accuracy", accuracy),
    ("speed", "Speed and size", "Latency and size against dense", speed),
    ("parity", "Parity", "Whether the export computes the same", parity),
    ("environment", "Environment", "Where it was run", environment),
    ("reproduce", "Reproduce", "How to reproduce it", reproduction),
)


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into an output folder from whatever its stages have left there.

    Raises:
        CheckpointError: the folder holds nothing to report on, or one of its files cannot be read.
    """
    path = Path(folder) / "report.html"
    write_text(path, render_report(read_parts(folder)))
    return path


def is_page(path: Path) -> bool:
    """Whether a file is a page that vitslim wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as page:
        return GENERATOR.encode() in page.read(_HEAD_BYTES)


def render_report(parts: ReportParts) -> str:
    """The whole page as text. A part that is None becomes a sentence that says so."""
    bodies = [(anchor, name, title, content(parts)) for anchor, name, title, content in SECTIONS]
    return compose(f"{parts.title} – vitslim report", headline(parts), bodies)


def compose(title: str, top: Markup, bodies: Sequence[tuple[str, str, str, Markup]]) -> str:
    """A page of its own: no script, nothing fetched.

    Args:
        title: name of the page in the browser.
        top: what stands above the navigation.
        bodies: anchor, name in the navigation, heading and content of every section.
    """
    links = [element("li", element("a", name, href=f"#{anchor}")) for anchor, name, _, _ in bodies]
    sections = [
        element(
            "section",
            element("h2", heading, id=f"{anchor}-heading"),
            content,
            id=anchor,
            aria_labelledby=f"{anchor}-heading",
        )
        for anchor, _, heading, content in bodies
    ]
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        GENERATOR,
        element("title", title),
        element("style", Markup(STYLE_SHEET)),
    )
    body = element(
        "body",
        top,
        element("nav", element("ul", *links), aria_label="Sections"),
        element("main", *sections),
        element("footer", "Written by vitslim report from the JSON files of the output folder."),
    )
    return "<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n"
