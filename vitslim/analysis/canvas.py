"""A blank page for a picture, in the house's colours."""

from pathlib import Path
from typing import Any

from vitslim.errors import MissingDependencyError
from vitslim.files import atomic_path

# Matplotlib's classes. Named by hand: importing them needs the library, which may not be there.
Axes = Any
Figure = Any

INK, MUTED, GRID = "#1f2933", "#616e7c", "#e4e7eb"
SMALL = 8.5  # points
_DPI = 150


def canvas(width: float, height: float, title: str, subtitle: str) -> tuple[Figure, Axes]:
    """A figure of so many inches, outside pyplot's global state: nothing stays open, no window system is asked for.

    Raises:
        MissingDependencyError: matplotlib is not there.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as NewFigure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise MissingDependencyError("drawing needs matplotlib: pip install 'vitslim[report]'") from None
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)  # inches
    figure = NewFigure(figsize=(width, height), dpi=_DPI, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=24)
    axes.annotate(subtitle, (0, 1), (0, 9), "axes fraction", textcoords="offset points", fontsize=SMALL, color=MUTED)
    return figure, axes


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; the old file stays until the new one is whole."""
    with atomic_path(path) as scratch:
        figure.savefig(scratch, format="png")
