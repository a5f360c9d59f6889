"""Lists of blocks and numbers as people write them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

from vitslim.errors import ConfigError
from vitslim.plans import ModelPlan

_NUMBER = re.compile("[0-9]{1,4}")  # no model has 10,000 blocks


def parse_layers(value: Any) -> tuple[int, ...]:
    """Layers from one number, a range, a list, or text such as ``3-8`` or ``3,5,7-9``; sorted, each once.

    Raises:
        ValueError: not a list of layers, or a layer given twice.
    """
    if isinstance(value, str):
        value = _parse_layer_text(value)
    value = _listed(value)
    if not isinstance(value, Iterable):
        raise ValueError("wanted a number, a range, a list of numbers, text such as '3-8', or 'auto'")
    layers = list(cast("Iterable[Any]", value))
    if any(isinstance(layer, bool) or not isinstance(layer, int) for layer in layers):
        raise ValueError("every layer is a whole number")
    if len(set(layers)) != len(layers):
        raise ValueError("a layer is named twice")
    return tuple(sorted(layers))


def parse_numbers(value: Any) -> Any:
    """One number or text such as ``2,4`` as a tuple; what is neither comes back for the field's type to judge."""
    return tuple(part.strip() for part in value.split(",")) if isinstance(value, str) else _listed(value)


def steps_of(plan: ModelPlan, blocks: Iterable[int], option: str) -> list[int]:
    """The first step of each block, in order.

    Args:
        option: as it is named in a refusal, ``prune.layers``.

    Raises:
        ConfigError: no step runs such a block.
    """
    first = {step.block: index for index, step in reversed(list(enumerate(plan.steps)))}
    blocks = list(blocks)
    if missing := [block for block in blocks if block not in first]:
        known = ", ".join(map(str, sorted(first)))
        raise ConfigError(f"{option}={tuple(blocks)}: no step runs block {missing[0]}; choose from {known}")
    return sorted(first[block] for block in blocks)


def refuse_second_rule(plan: ModelPlan, method: str) -> None:
    """Nothing where all steps take all tokens.

    Raises:
        ConfigError: a step chooses its tokens already.
    """
    for index, step in enumerate(plan.steps):
        if step.tokens.kind != "all":
            raise ConfigError(
                f"{method}: step {index} already has a rule for its tokens ({step.tokens.describe()}); one of them "
                "can rule"
            )


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _parse_layer_text(text: str) -> list[int]:
    layers: list[int] = []
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        first, dash, last = part.partition("-")
        if not _NUMBER.fullmatch(first) or (dash and not _NUMBER.fullmatch(last)):
            raise ValueError(f"{part!r} is neither a number nor a span such as 3-8")
        span = range(int(first), int(last if dash else first) + 1)
        if not span:
            raise ValueError(f"the span {part!r} is empty; write the smaller number first")
        layers.extend(span)
    return layers
