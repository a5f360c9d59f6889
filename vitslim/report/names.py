"""What a page calls a model."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, cast

from vitslim.checkpoint import SavedModel
from vitslim.names import ALIASES
from vitslim.report.numbers import block_list, plain

_SHORT = {name: alias for alias, name in ALIASES.items()}
_LONG = 4  # values of an option that are written out one by one


def title_of(config: SavedModel) -> str:
    """What was made of which model, as in ``deit_small → skipat + evo_vit``."""
    methods = " + ".join(one.method for one in config.conversions)
    return f"{base_title(config)} → {methods}" if methods else f"{base_title(config)}, dense"


def base_title(config: SavedModel) -> str:
    """The dense model's alias or name; one that was built by hand is named by its class and shape."""
    name, options = config.base.architecture, config.base.options
    if not name.startswith(":"):
        return _SHORT.get(name, name)
    shape = [f"{options[key]} {words}" for key, words in (("depth", "blocks"), ("embed_dim", "wide")) if key in options]
    return name[1:] + (f" ({', '.join(shape)})" if shape else "")


def conversion_sentence(config: SavedModel) -> str:
    """Which methods were applied, with their options, in one sentence."""
    if not config.conversions:
        return "The dense model, not converted."
    methods = [
        one.method + (f" ({words})" if (words := _option_words(one.options)) else "") for one in config.conversions
    ]
    size = "×".join(map(str, config.input.image_size))
    return f"Converted with {', then '.join(methods)} at {size} pixels."


def _option_words(options: dict[str, Any]) -> str:
    """The options that say something: those left open and those that are off are dropped."""
    given = {name: value for name, value in options.items() if value is not None and value is not False}
    return ", ".join(name if value is True else f"{name} {option_value(name, value)}" for name, value in given.items())


def option_value(name: str, value: Any) -> str:
    """A long list with what repeats written once, ``1 ×4, 0.5 ×8``; numbers of blocks as runs."""
    if not isinstance(value, list | tuple):
        return plain(value)
    entries = cast("Sequence[Any]", value)
    are_blocks = name != "widths" and all(type(entry) is int for entry in entries)
    if entries and are_blocks and list(entries) == sorted({*entries}):
        return block_list(list(entries))
    if len(entries) <= _LONG:
        return plain(list(entries))
    counted = [(plain([entry]), len(list(run))) for entry, run in groupby(entries)]
    return ", ".join(f"{entry} ×{count}" if count > 1 else entry for entry, count in counted)
