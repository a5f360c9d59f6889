"""What a method is and every option it has, in words, from the fields of its config."""

from __future__ import annotations

import inspect
import types
from shlex import quote
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from vitslim.arguments import checked
from vitslim.methods.base import METHODS, Method
from vitslim.shapes import Result


class OptionDescription(Result):
    """One option of a method."""

    name: str
    kind: str
    """Its type in words."""
    default: Any
    range: str
    """Limits of a number; empty where there are none."""
    meaning: str
    example: str
    """A value as the command line takes it."""


class MethodDescription(Result):
    """One method."""

    name: str
    summary: str
    source: str
    options: list[OptionDescription]
    command: str
    """A command line that converts with it."""


@checked
def list_methods() -> list[str]:
    """Names of all methods."""
    return METHODS.names()


def describe_method(name: str) -> MethodDescription:
    """What ``vitslim list methods NAME`` shows.

    Raises:
        ConfigError: there is no such method.
    """
    method = METHODS.get(name)
    options = [_option(field, info) for field, info in method.config.model_fields.items()]
    chosen = options[0]
    return MethodDescription(
        name=name,
        summary=_summary(method),
        source=method.source,
        options=options,
        command=f"vitslim convert deit_small --method {name} -O {quote(f'{chosen.name}={chosen.example}')} --out out",
    )


def _summary(method: Method) -> str:
    first = (inspect.getdoc(inspect.getmodule(method.config)) or "").partition("\n")[0]
    return first.partition(": ")[2].rstrip(".")


def _option(name: str, field: FieldInfo) -> OptionDescription:
    return OptionDescription(
        name=name,
        kind=_words(field.annotation),
        default=field.default,
        range=_range(field),
        meaning=" ".join((field.description or "").replace("``", "").split()),
        example=str(field.examples[0]) if field.examples else _other_choice(field),
    )


def _words(kind: Any) -> str:
    """``tuple[int, ...] | Literal["auto"] | None`` as "whole numbers or auto"; one number is a list too."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        words = [_words(part) for part in parts if part is not type(None)]
        return " or ".join(word for word in words if f"{word}s" not in words)
    if origin is Literal:
        return " or ".join(map(str, parts))
    if origin is tuple:
        return "groups" if get_origin(parts[0]) is tuple else f"{_words(parts[0])}s"
    if origin is Annotated:
        return _words(parts[0])
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}.get(kind, str(kind))


def _range(field: FieldInfo) -> str:
    limits = {
        name: getattr(limit, name) for limit in field.metadata for name in ("ge", "gt", "le") if hasattr(limit, name)
    }
    words = {"ge": "from", "gt": "above", "le": "to"}
    return " ".join(f"{words[name]} {limit:g}" for name, limit in limits.items())


def _other_choice(field: FieldInfo) -> str:
    """A value other than the default, of an option that has few."""
    kinds = (field.annotation, *get_args(field.annotation))
    choices = [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    return next(choice for choice in (*choices, "true", "false") if choice != str(field.default).lower())
