"""Rendering a page through its template."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from vitslim.report.content import Page

GENERATOR = '<meta name="generator" content="vitslim">'
_HEAD_BYTES = 4096  # of a page, in which its generator is named


def render(page: Page) -> str:
    """The page as HTML of its own: no script, nothing fetched, and whatever came from files escaped."""
    return _template().render(page=page)


def is_page(path: Path) -> bool:
    """Whether a file is a page that vitslim wrote."""
    if not path.is_file():
        return False
    with path.open("rb") as page:
        return GENERATOR.encode() in page.read(_HEAD_BYTES)


@cache
def _template() -> Template:
    loader = PackageLoader("vitslim.report")
    found = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    return found.get_template("page.html")
