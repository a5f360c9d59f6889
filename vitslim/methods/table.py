"""The table of methods: one line each."""

import difflib

from vitslim.arguments import checked
from vitslim.errors import ConfigError
from vitslim.methods import evo_vit, skipat, sparsifiner, sret
from vitslim.methods.base import Method
from vitslim.shapes import Config

_METHODS: tuple[Method, ...] = (skipat.METHOD, evo_vit.METHOD, sparsifiner.METHOD, sret.METHOD)

METHODS: dict[str, Method] = {method.name: method for method in _METHODS}


@checked
def list_methods() -> list[str]:
    """Names of all methods."""
    return list(METHODS)


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    found = METHODS.get(name)
    if found is None:
        close = difflib.get_close_matches(name, METHODS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(METHODS)}"
        raise ConfigError(f"unknown method {name!r}; {hint}")
    return found


def method_of(config: Config) -> Method:
    """The method that a config's type names.

    Raises:
        ConfigError: the type belongs to no method.
    """
    for method in METHODS.values():
        if type(config) is method.config:
            return method
    known = ", ".join(method.config.__name__ for method in METHODS.values())
    raise ConfigError(f"{type(config).__name__} is not a method's config; wanted one of {known}")
