"""Heat maps of layer against layer."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from vitslim.analysis.colour import heat_colour
from vitslim.report.axes import drawing
from vitslim.report.documents import Matrix
from vitslim.report.markup import Markup, element
from vitslim.report.numbers import fixed

SIDE = 264.0
MARGIN = 34.0
# Above this many layers the cells are too small to label each one.
LABELLED_LAYERS = 16


def heat_map(matrix: Matrix, layers: Sequence[str], marked: Sequence[int], description: str) -> Markup:
    """One square of cells, first layer at the top left; values of 0..1 take the shared colours.

    Args:
        matrix: rows of cells; None is a cell that could not be computed and stays hatched.
        layers: the layers' full names, shown on hovering.
        marked: layers that the analysis recommends; their labels and their square on the diagonal are marked.
        description: what is seen, for readers who cannot see it.
    """
    cell = SIDE / len(layers)
    pieces = [
        _cell(value, row, column, cell, layers)
        for row, values in enumerate(matrix)
        for column, value in enumerate(values)
    ]
    pieces += _labels(len(layers), cell, set(marked))
    pieces += [_outline(first, last, cell) for first, last in runs(marked)]
    return drawing(SIDE + MARGIN + 4, SIDE + MARGIN + 4, description, *pieces)


def heat_legend(*, has_marks: bool) -> Markup:
    """What the colours of all heat maps mean, and the marks where there are any."""
    colours = ", ".join(heat_colour(step / 16) for step in range(17))
    scale = element("i", class_="scale", style=f"background:linear-gradient(to right, {colours})")
    marks = element("li", element("i", class_="spot marked"), "recommended for conversion")
    return element(
        "ul", element("li", "0, unrelated ", scale, " 1, alike"), *([marks] if has_marks else []), class_="key"
    )


def runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """First and last of every unbroken run of numbers."""
    grouped = groupby(enumerate(sorted(set(numbers))), key=lambda pair: pair[1] - pair[0])
    found = [[number for _, number in group] for _, group in grouped]
    return [(run[0], run[-1]) for run in found]


def _cell(value: float | None, row: int, column: int, cell: float, layers: Sequence[str]) -> Markup:
    title = element("title", f"{layers[row]} and {layers[column]}: {fixed(value, 3)}")
    x, y = MARGIN + column * cell, row * cell + 2
    # A hair of overlap keeps the page from showing through between the cells.
    size = cell + 0.4
    if value is None:
        return element("rect", title, x=x, y=y, width=cell, height=cell, class_="undefined")
    return element("rect", title, x=x, y=y, width=size, height=size, fill=heat_colour(value))


def _labels(count: int, cell: float, marked: set[int]) -> list[Markup]:
    every = 1 if count <= LABELLED_LAYERS else 2 if count <= 2 * LABELLED_LAYERS else 5
    pieces: list[Markup] = []
    for layer in range(0, count, every):
        middle = (layer + 0.5) * cell
        shade = "tick marked-text" if layer in marked else "tick"
        label = str(layer)
        pieces.append(element("text", label, x=MARGIN - 6, y=middle + 5.5, text_anchor="end", class_=shade))
        pieces.append(element("text", label, x=MARGIN + middle, y=SIDE + 17, text_anchor="middle", class_=shade))
    pieces.append(element("text", "block", x=MARGIN + SIDE / 2, y=SIDE + 33, text_anchor="middle", class_="name"))
    turn = f"rotate(-90 9 {SIDE / 2:g})"
    pieces.append(element("text", "block", x=9, y=SIDE / 2, text_anchor="middle", transform=turn, class_="name"))
    return pieces


def _outline(first: int, last: int, cell: float) -> Markup:
    size = (last - first + 1) * cell
    return element("rect", x=MARGIN + first * cell, y=first * cell + 2, width=size, height=size, class_="marked")
