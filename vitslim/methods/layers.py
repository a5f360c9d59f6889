"""Lists of blocks and numbers as people write them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, cast

from vitslim.errors import ConfigError
from vitslim.plans import AllTokens, ModelPlan, places

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


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _parse_layer_text(text: str) -> list[int]:
    layers: list[int] = []
    for part in filter(None, (word.strip() for word in text.split(","))):
        first, dash, last = part.partition("-")
        if not _NUMBER.fullmatch(first) or (dash and not _NUMBER.fullmatch(last)):
            raise ValueError(f"{part!r} is neither a number nor a span such as 3-8")
        span = range(int(first), int(last if dash else first) + 1)
        if not span:
            raise ValueError(f"the span {part!r} is empty; write the smaller number first")
        layers.extend(span)
    return layers


def steps_of(plan: ModelPlan, option: str, blocks: Iterable[int]) -> tuple[int, ...]:
    """The steps of a plan that run these blocks of the dense model, in order.

    Args:
        option: names the blocks in messages.

    Raises:
        ConfigError: a block that the model has not, or that the plan has dropped.
    """
    wanted = set(blocks)
    gone, last = wanted.intersection(plan.dropped), plan.model.depth - 1
    for block in sorted(wanted):
        if not 0 <= block <= last:
            raise ConfigError(f"{option}: block {block} does not exist; choose from 0..{last}")
        if block in gone:
            raise ConfigError(f"{option}: block {block} was dropped by an earlier conversion; leave it out")
    return tuple(index for index, step in enumerate(plan.steps) if step.block in wanted)


def refuse_ruled_tokens(method: str, plan: ModelPlan) -> None:
    """Refuse a plan in which another method chooses the tokens already.

    Raises:
        ConfigError: with the first step where some are left out.
    """
    ruled = [index for index, step in enumerate(plan.steps) if not isinstance(step.tokens, AllTokens)]
    if ruled:
        index = next((at.index for at in places(plan) if at.in_mlp.patches < plan.patches), ruled[0])
        found = plan.steps[index].tokens.describe()
        raise ConfigError(f"{method}: step {index} already has a rule for its tokens ({found}); one of them can rule")
