"""The report of one output folder."""

from collections.abc import Callable
from pathlib import Path

from vitslim.files import write_text
from vitslim.report.content import Element, Page, Section
from vitslim.report.page import render
from vitslim.report.parts import ReportParts, read_parts
from vitslim.report.sections.accuracy import accuracy
from vitslim.report.sections.change import change
from vitslim.report.sections.headline import headline
from vitslim.report.sections.origin import environment, reproduction
from vitslim.report.sections.parity import parity
from vitslim.report.sections.redundancy import redundancy
from vitslim.report.sections.speed import speed
from vitslim.report.sections.training import training

# anchor, name in the navigation, heading, content
SECTIONS: tuple[tuple[str, str, str, Callable[[ReportParts], list[Element]]], ...] = (
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


def render_report(parts: ReportParts) -> str:
    """The whole page as text. A part that is not there becomes a sentence that says so."""
    sections = [Section(anchor, name, heading, content(parts)) for anchor, name, heading, content in SECTIONS]
    return render(Page("report", parts.title, parts.sentence, sections, cards=headline(parts)))
