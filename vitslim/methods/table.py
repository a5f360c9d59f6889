"""The table of methods, by the names that users type."""

from importlib import import_module

from vitslim.arguments import checked
from vitslim.errors import ConfigError
from vitslim.methods.base import Method
from vitslim.names import METHOD_NAMES, check_method
from vitslim.shapes import Config

METHODS: dict[str, Method] = {name: import_module(f"vitslim.methods.{name}").METHOD for name in METHOD_NAMES}


@checked
def list_methods() -> list[str]:
    """Names of all methods."""
    return list(METHODS)


def method_named(name: str) -> Method:
    """The method of that name.

    Raises:
        ConfigError: there is none; the message names the nearest.
    """
    return METHODS[check_method(name)]


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
