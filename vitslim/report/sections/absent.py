"""What stands in a section whose stage has not run."""

from vitslim.report.markup import Markup, element, paragraph


def absent(what: str, command: str) -> Markup:
    """One honest sentence: what is not known, and the command that would find out."""
    return paragraph(f"{what}: run ", element("code", command), ".", class_="absent")
