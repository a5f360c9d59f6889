"""Writing HTML and SVG in which every piece of text is escaped unless it was made here."""

from collections.abc import Iterable
from html import escape

VOID_ELEMENTS = frozenset({"br", "col", "hr", "img", "meta"})


class Markup(str):
    """Text that is HTML already; a plain ``str`` is escaped when it is put into an element."""

    __slots__ = ()


def element(tag: str, /, *children: str, **attributes: str | int | float | None) -> Markup:
    """One element with its children.

    Args:
        tag: name of the element.
        children: ``Markup`` is taken as it stands, other text is escaped.
        attributes: ``class_`` becomes ``class`` and ``aria_label`` becomes ``aria-label``; ``None`` leaves one out.
    """
    opening = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_attribute(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in VOID_ELEMENTS:
        return Markup(f"<{tag}{opening}>")
    return Markup(f"<{tag}{opening}>{join(children)}</{tag}>")


def join(children: Iterable[str]) -> Markup:
    """The pieces one after the other, escaped where they are plain text."""
    return Markup("".join(child if isinstance(child, Markup) else escape(child) for child in children))


def paragraph(*children: str, class_: str | None = None) -> Markup:
    """A paragraph of running text."""
    return element("p", *children, class_=class_)


def figure(title: str, drawing: Markup, note: str | None = None) -> Markup:
    """A drawing below its title, which scrolls sideways on a narrow screen; ``note`` stands beneath."""
    caption = [element("strong", title), *([element("span", note)] if note else [])]
    return element("figure", element("figcaption", *caption), element("div", drawing, class_="scroll"))


def table(caption: str, header: Iterable[str], rows: Iterable[Iterable[str]], *, text_columns: int = 1) -> Markup:
    """A table whose first column names the row.

    Args:
        caption: what the table shows, with units that all its numbers share.
        header: one name per column.
        rows: the cells; ``Markup`` keeps its tags.
        text_columns: that many columns from the left are words, the others are numbers and stand flush right.
    """
    head = [element("th", name, scope="col", class_=_alignment(i, text_columns)) for i, name in enumerate(header)]
    body = [element("tr", *(_cell(cell, i, text_columns) for i, cell in enumerate(row))) for row in rows]
    inner = [
        element("caption", element("span", caption)),
        element("thead", element("tr", *head)),
        element("tbody", *body),
    ]
    return element("div", element("table", *inner), class_="scroll")


def _cell(content: str, column: int, text_columns: int) -> Markup:
    if column == 0:
        return element("th", content, scope="row")
    return element("td", content, class_=_alignment(column, text_columns))


def _alignment(column: int, text_columns: int) -> str | None:
    return None if column < text_columns else "number"


def _attribute(value: str | int | float) -> str:
    # Coordinates: two decimals are finer than any screen, and keep the file small.
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
