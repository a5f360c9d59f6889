"""Drawing with matplotlib: the look that all figures share, and their SVG."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from vitslim.report.numbers import Number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, RULE, PAPER, BAND = "#1f2428", "#5d656c", "#dfdcd3", "#fcfbf8", "#f6e9d8"
FIRST, SECOND, THIRD, FOURTH = "#3f6c9b", "#c4833a", "#7a67b8", "#4c8f63"
GOOD, BAD, ACCENT = "#1b7249", "#b3372a", "#9a4f10"
# A page gives each of these another value in the dark; a file of its own keeps the ones above.
_VARIABLES = {
    INK: "ink",
    SOFT: "soft",
    RULE: "rule",
    PAPER: "paper",
    BAND: "band",
    FIRST: "first",
    SECOND: "second",
    THIRD: "third",
    FOURTH: "fourth",
    GOOD: "good",
    BAD: "bad",
    ACCENT: "accent",
}
WIDTH = 5.2  # inches; twice on a wide page, and still legible on a narrow one
SMALL = 8.5  # points
_LONGEST_LABEL = 46
_LARGEST = 1e15
_LARGEST_SCALE = 102  # pixels for an inch of a figure: its letters are then about as large as the text around
_SETTINGS = {
    "svg.fonttype": "none",  # text stays text: it can be selected, and the file is small
    "text.parse_math": False,  # names come from files, and a dollar sign is none of ours
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.labelsize": SMALL,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
}


@dataclass(frozen=True)
class Picture:
    """A figure as a whole SVG document.

    Args:
        title: stands above it on a page.
        width: in inches, as the height.
        description: what is seen, for readers who cannot see it.
        note: stands beneath the title.
    """

    title: str
    svg: str
    description: str
    width: float
    height: float
    note: str = ""

    @property
    def markup(self) -> Markup:
        """The SVG as a part of a page: as wide as its place, in the page's colours and letters."""
        body = self.svg[self.svg.index("<svg") :]
        box = f"0 0 {72 * self.width:g} {72 * self.height:g}"
        size = f"max-width:{_LARGEST_SCALE * self.width:g}px"
        opening = f'<svg viewBox="{box}" style="{size}" role="img" aria-label="{escape(self.description)}">'
        body = opening + body[body.index(">") + 1 :]
        used = {*re.findall(r"#(\w+)", body)}
        body = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", body)
        body = body.replace("xlink:href", "href")
        body = body.replace("'DejaVu Sans'", "system-ui, sans-serif")
        return Markup(re.sub("|".join(_VARIABLES), lambda found: f"var(--{_VARIABLES[found[0]]})", body))


def draw(
    title: str,
    paint: Callable[[Figure], object],
    *,
    height: float,
    description: str,
    note: str = "",
    width: float = WIDTH,
) -> Picture:
    """Let ``paint`` draw on a blank figure of so many inches; the same figures give the same bytes."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # Names of parts of an SVG must not occur twice on a page.
    settings: dict[Any, Any] = {**_SETTINGS, "svg.hashsalt": ascii((title, description))}
    text = io.StringIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the measuring font lacks, bars of no height
        layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.04)
        figure = Figure(figsize=(width, height), layout=layout, facecolor="none")
        paint(figure)
        for axes in figure.axes:
            axes.set_facecolor("none")
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(text, format="svg", metadata=unsaid)
    return Picture(title, text.getvalue(), description, width, height, note)


def drawable(value: Number | None) -> bool:
    """Whether a figure has a place for a number out of a file."""
    return value is not None and abs(value) < _LARGEST


def label(text: str) -> str:
    """A name out of a file as one short printable line."""
    line = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return line if len(line) <= _LONGEST_LABEL else line[: _LONGEST_LABEL - 1] + "…"


def plain_log(axis_of: Axes, name: str, span: float) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2, 5 of each decade, or at decades where more would crowd."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    getattr(axis_of, f"set_{name}scale")("log")
    axis = axis_of.xaxis if name == "x" else axis_of.yaxis
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if span < 300 else (1,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
