"""What a shell offers at the Tab key, mostly without importing torch; `vitslim --install-completion` sets it up."""

from __future__ import annotations

from collections.abc import Callable

from vitslim.cli.early import model_names
from vitslim.names import ALIASES, BUILTIN, METHOD_NAMES

Completion = Callable[[str], list[str]]


def words(*known: str) -> Completion:
    """The words that an option knows."""

    def offer(incomplete: str) -> list[str]:
        return [word for word in known if word.startswith(incomplete)]

    return offer


methods = words(*METHOD_NAMES)
devices = words("cpu", "cuda")
lists = words("models", "methods", "targets", "aliases", "pairs")


def targets(incomplete: str) -> list[str]:
    """All targets, also those of other packages; the one completion that has to import torch."""
    from vitslim.targets import list_targets

    return words(*(one.name for one in list_targets()))(incomplete)


def backends(incomplete: str) -> list[str]:
    """Whatever runs models, by the names of ``targets``'s backends."""
    from vitslim.targets import list_targets

    return words(*dict.fromkeys(name for one in list_targets() for name in one.backends))(incomplete)


def models(incomplete: str) -> list[str]:
    """Aliases; behind some letters of which none is one, all that timm has."""
    short = words(BUILTIN, *ALIASES)(incomplete)
    return short or words(*model_names())(incomplete)


def benched(incomplete: str) -> list[str]:
    """What may follow `vitslim bench`: another of its commands, or a model."""
    return words("suite", "accuracy")(incomplete) + models(incomplete)
