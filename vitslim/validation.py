"""What pydantic finds wrong with plain data, in sentences."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from pathlib import PurePath
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from vitslim.errors import ConfigError

_SHOWN = 120  # characters of a value in a message
_UNKNOWN_KEY = ("extra_forbidden", "unexpected_keyword_argument")  # of a model, of a dataclass

Kind = TypeVar("Kind", bound=BaseModel)


def validated(kind: type[Kind], values: Mapping[str, Any], where: str = "") -> Kind:
    """Plain data as a ``kind``.

    Args:
        where: what the message begins with, as a file's name.

    Raises:
        ConfigError: with everything that is wrong.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(where + "; ".join(describe_errors(error, kind))) from None


def describe_errors(error: ValidationError, kind: type[BaseModel]) -> list[str]:
    """One sentence per error in plain data that should become a ``kind``; unknown keys come with the nearest known."""
    return describe_named_errors(error, _fields(kind))


def describe_named_errors(error: ValidationError, fields: Mapping[str, Any]) -> list[str]:
    """``describe_errors`` for named values, given the type of each."""
    # A value that fits none of several types gives one error per type, all at the same key.
    reasons: dict[str, dict[str, None]] = {}
    for details in error.errors(include_url=False, include_context=False):
        what, reason = _what_and_why(dict(details), fields)
        reasons.setdefault(what, {})[reason] = None
    return [what + _either(list(several)) for what, several in reasons.items()]


def _either(reasons: list[str]) -> str:
    # What is no path is no text either, which is said already.
    first, *others = [reason for reason in reasons if "valid path" not in reason] or reasons
    return " or ".join([first, *(reason.removeprefix("Input should be ") for reason in others)])


def shown(value: object) -> str:
    """A value as a message can show it: short, and its class's name where it is more than plain data."""
    if not isinstance(value, str | bytes | int | float | list | tuple | dict | PurePath | type | None):
        return f"a {type(value).__name__}"
    try:
        text = repr(value)
    except ValueError:  # an integer of thousands of digits
        return "a number too long to show"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def _what_and_why(details: dict[str, Any], fields: Mapping[str, Any]) -> tuple[str, str]:
    """What is wrong, up to the colon, and why."""
    place, known = _place(details, fields)
    key = ".".join(place)
    if details["type"] in _UNKNOWN_KEY:
        close = difflib.get_close_matches(place[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        return f"unknown key {shown(key)}; ", hint
    given = details["input"]
    if details["type"] in ("model_type", "dict_type"):
        return f"{key}={shown(given)}: ", "wanted settings, each key: value"
    reason = str(details["msg"]).removeprefix("Value error, ")
    is_one_kind = len(place) == len(details["loc"])
    if details["type"] == "string_type" and is_one_kind and isinstance(given, bool | int | float):
        reason = f"{reason}; in quotes it is one"
    if not place:
        return "", reason
    # Errors between the fields of a section name these by themselves.
    return (f"{key}: " if isinstance(given, dict) else f"{key}={shown(given)}: "), reason


def _place(details: dict[str, Any], fields: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The keys that lead to an error, and the names known where it lies."""
    place: list[str] = []
    section, inner, has_keys = fields, fields, False
    for part in details["loc"]:
        if part in inner:
            section, inner, has_keys = inner, _fields_within(inner[part]), _takes_keys(inner[part])
        elif has_keys and isinstance(part, str):
            has_keys = False
        elif part == details["loc"][-1] and details["type"] in _UNKNOWN_KEY:
            section = inner
        elif isinstance(part, str):
            break  # the name of one of several types, which says nothing to a user
        place.append(str(part))
    return place, list(section)


def _takes_keys(annotation: Any) -> bool:
    return any(get_origin(kind) in (dict, Mapping) for kind in (annotation, *get_args(annotation)))


def _fields_within(annotation: Any) -> dict[str, Any]:
    """The fields of the config that a value holds, directly or beside ``None``."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return _fields(kind)
        if isinstance(kind, type) and is_dataclass(kind):
            return {field.name: field.type for field in dataclass_fields(kind)}
    return {}


def _fields(kind: type[BaseModel]) -> dict[str, Any]:
    return {name: field.annotation for name, field in kind.model_fields.items()}
