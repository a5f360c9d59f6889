"""Protocol buffers' text format, as far as configuration files need it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

_INDENT = "  "


class Name(str):
    """A value of an enumeration, which stands in the text without quotes."""

    __slots__ = ()


def text_format(message: Mapping[str, Any]) -> str:
    """A message as text: one line per scalar, a block per message, one line per list of scalars.

    Args:
        message: values by field name. A mapping is a message, a list of mappings a repeated one; ``None`` leaves the
            field out.
    """
    return "".join(f"{line}\n" for line in _lines(message))


def map_field(entries: Mapping[str, str]) -> list[dict[str, Any]]:
    """A ``map<string, ModelParameter>``: the text format writes a map as repeated pairs."""
    return [{"key": key, "value": {"string_value": value}} for key, value in entries.items()]


def _lines(message: Mapping[str, Any]) -> Iterator[str]:
    for name, value in message.items():
        if value is None:
            continue
        if isinstance(value, Mapping):
            yield from _block(name, cast("Mapping[str, Any]", value))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            yield from _repeated(name, cast("Sequence[Any]", value))
        else:
            yield f"{name}: {_scalar(value)}"


def _repeated(name: str, values: Sequence[Any]) -> Iterator[str]:
    if any(isinstance(value, Mapping) for value in values):
        for value in values:
            yield from _block(name, value)
    elif values:
        yield f"{name}: [{', '.join(_scalar(value) for value in values)}]"


def _block(name: str, message: Mapping[str, Any]) -> Iterator[str]:
    yield f"{name} {{"
    yield from (_INDENT + line for line in _lines(message))
    yield "}"


def _scalar(value: Any) -> str:
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are ones that the text format knows; other characters stand as they are, in UTF-8.
        return json.dumps(value, ensure_ascii=False)
    return str(value)
