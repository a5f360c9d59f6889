"""What pages are made of, as data: a template lays it out and escapes it."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from vitslim.bench.ratios import Verdict
from vitslim.bench.tables import as_markdown, as_text
from vitslim.report.drawing import Picture

Tone = Literal["good", "bad", "even"]
TONES: dict[Verdict, Tone] = {"faster": "good", "even": "even", "too noisy": "even", "slower": "bad"}


@dataclass(frozen=True)
class Cell:
    """Text in a colour of its own; ``below`` stands smaller on a second line."""

    text: str
    tone: Tone | None = None
    below: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Table:
    """A table with its caption; the first column names the rows.

    Args:
        words: columns at the left that hold words; figures follow, right-aligned.
        note: a sentence below it.
        look: ``facts`` are two narrow columns; ``folded`` are those that are shown when asked for.
    """

    kind: ClassVar[str] = "table"
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    words: int = 1
    note: str = ""
    look: Literal["wide", "facts", "folded"] = "wide"

    @property
    def cells(self) -> list[list[str]]:
        """Header and rows as plain text."""
        return [list(self.header), *(list(map(str, row)) for row in self.rows)]

    def markdown(self) -> str:
        """As GitHub draws it."""
        table = as_markdown(self.cells, self.words)
        return "\n".join([f"**{self.title}**", "", table, *(["", self.note] if self.note else [])])

    def text(self) -> str:
        """In aligned columns, for a terminal."""
        return "\n".join([f"{self.title}:", as_text(self.cells, self.words), *([self.note] if self.note else [])])


@dataclass(frozen=True)
class Note:
    """A sentence: plain, small (``note``), of what is not there (``absent``), or of what is wrong (``bad``).

    Args:
        lead: stands before it in bold.
        code: a command that ends it.
    """

    kind: ClassVar[str] = "note"
    text: str
    style: Literal["", "note", "absent", "bad"] = ""
    lead: str = ""
    code: str = ""


@dataclass(frozen=True)
class Pictures:
    """Pictures side by side, one per line where the page is narrow."""

    kind: ClassVar[str] = "pictures"
    pictures: Sequence[Picture]
    columns: Literal["one", "two", "three"] = "two"


@dataclass(frozen=True)
class Listing:
    """Lines of code, or with ``is_code`` off items of a list."""

    kind: ClassVar[str] = "listing"
    lines: Sequence[str]
    is_code: bool = True


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Download:
    """A file that a page carries within itself.

    Args:
        media: its type, such as ``text/csv``.
        what: it holds, in a few words.
    """

    name: str
    media: str
    text: str
    what: str

    @property
    def address(self) -> str:
        """A link to the file itself."""
        return f"data:{self.media};charset=utf-8;base64,{b64encode(self.text.encode()).decode()}"


@dataclass(frozen=True)
class Downloads:
    """Files to be saved."""

    kind: ClassVar[str] = "downloads"
    files: Sequence[Download]


Element = Table | Note | Pictures | Listing | Heading | Downloads


@dataclass(frozen=True)
class Section:
    """A section: its anchor, its name in the navigation, its heading, what stands in it."""

    anchor: str
    name: str
    heading: str
    elements: Sequence[Element]


@dataclass(frozen=True)
class Card:
    """One figure that matters, in large; None is one that is not known."""

    what: str
    figure: str | None
    detail: Sequence[str | Cell]
    tone: Tone | None = None


@dataclass(frozen=True)
class Page:
    """A whole page.

    Args:
        kind: what sort of page, above its heading.
        cautions: what the reader has to mind, below the lead.
    """

    kind: str
    heading: str
    lead: str
    sections: Sequence[Section]
    cards: Sequence[Card] = ()
    cautions: Sequence[str] = ()


def absent(what: str, command: str) -> Note:
    """What stands in a section whose stage has not run: what is not known, and the command that finds out."""
    return Note(f"{what}: run", "absent", code=command)


def facts(title: str, values: Mapping[str, str | Cell], look: Literal["facts", "folded"] = "facts") -> list[Element]:
    """Names with their values; nothing where there are none."""
    return [Table(title, ("Name", "Value"), list(values.items()), words=2, look=look)] if values else []


def pictures(*found: Picture | None, columns: Literal["one", "two", "three"] = "two") -> list[Element]:
    """Those pictures that could be drawn; nothing where none could."""
    drawn = [one for one in found if one is not None]
    return [Pictures(drawn, columns)] if drawn else []
