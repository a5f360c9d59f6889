"""The one verb: a model and a method in, a converted copy out."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import InstanceOf, ValidationError
from torch import nn

from vitslim.arguments import checked
from vitslim.errors import ConfigError, UnsupportedModelError, VitslimError
from vitslim.methods.base import Evidence, Method
from vitslim.methods.table import METHODS, method_named, method_of
from vitslim.models import adapter_for, describe
from vitslim.shapes import Config
from vitslim.trunk import Conversion, Plan, dense_plan, install_trunk_, is_converted, trunk_of


@checked
def convert(
    model: nn.Module, method: str | InstanceOf[Config], *, analysis: Evidence | None = None, **options: Any
) -> nn.Module:
    """Convert a pretrained ViT; the given model is left as it is and shares nothing with the copy that comes back.

    Args:
        model: a dense or already converted timm model.
        method: the method's name with ``options``, or its config.
        analysis: decides the options that are left to it (``None``), and is needed by those that say ``"auto"``.
        options: fields of the method's config.

    Returns:
        A model of the same timm class whose ``blocks`` are a ``Trunk``. New parameters are not trained yet.

    Raises:
        ConfigError: unknown method or option, a value out of range, or a method that was applied before.
        UnsupportedModelError: no adapter knows the model, or the method refuses it.
    """
    chosen, config = _chosen(method, options)
    return _converted(model, chosen, config, analysis)


def replay(model: nn.Module, history: list[Conversion]) -> nn.Module:
    """Apply a saved list of conversions to a freshly built dense model, whose weights will be read afterwards.

    Raises:
        ConfigError: an entry that this version does not know or cannot read.
    """
    for entry in history:
        chosen, config = _chosen(entry.method, entry.options)
        model = _converted(model, chosen, config, None, weights_follow=True)
    return model


def read_options(method: Method, options: Mapping[str, Any]) -> Config:
    """The method's config from plain options, all faults reported together.

    Raises:
        ConfigError: unknown fields (with the nearest known one) or unusable values.
    """
    try:
        return method.config.model_validate(dict(options))
    except ValidationError as error:
        raise ConfigError("; ".join(_fault(method, fault) for fault in error.errors())) from None


def plan_of(model: nn.Module) -> Plan:
    """The plan that a method would change.

    Raises:
        UnsupportedModelError: no adapter knows the model.
    """
    return trunk_of(model).plan if is_converted(model) else dense_plan(model)


def method_support(model: nn.Module) -> dict[str, dict[str, Any]]:
    """For every method whether its default form can convert this model, and the reason if not."""
    return {name: _support(model, method) for name, method in METHODS.items()}


def _support(model: nn.Module, method: Method) -> dict[str, Any]:
    try:
        _refuse_repetition(model, method)
        method.resolve(method.config(), plan_of(model), None)
    except VitslimError as error:
        return {"supported": False, "reason": str(error)}
    return {"supported": True, "reason": ""}


def _chosen(method: str | Config, options: Mapping[str, Any]) -> tuple[Method, Config]:
    if isinstance(method, str):
        found = method_named(method)
        return found, read_options(found, options)
    if options:
        given = ", ".join(options)
        raise ConfigError(f"options ({given}) were given beside a {type(method).__name__}; put them into the config")
    return method_of(method), method


def _converted(
    source: nn.Module, method: Method, config: Config, analysis: Evidence | None, *, weights_follow: bool = False
) -> nn.Module:
    _refuse_repetition(source, method)
    resolved = method.resolve(config, plan_of(source), analysis)
    base = trunk_of(source).base if is_converted(source) else describe(source)
    copied = copy.deepcopy(source)
    plan = method.apply(replace(plan_of(copied), weights_follow=weights_follow), resolved)
    if not plan.steps:
        raise UnsupportedModelError(f"{method.name} left no step; the model is unchanged")
    entry = Conversion(method.name, resolved.model_dump(mode="json"))
    converted = install_trunk_(copied, replace(plan, history=(*plan.history, entry)), base)
    if method.finish is not None:
        method.finish(converted, resolved)
    return converted


def _refuse_repetition(model: nn.Module, method: Method) -> None:
    if is_converted(model):
        done = [entry.method for entry in trunk_of(model).history]
        if method.name in done:
            raise ConfigError(
                f"the model was already converted with {method.name!r} (history: {', '.join(done)}); "
                "start again from the dense model with other options"
            )
    else:
        adapter_for(model)


def _fault(method: Method, fault: Any) -> str:
    field = ".".join(str(part) for part in fault["loc"]) or "?"
    if fault["type"] == "extra_forbidden":
        known = list(method.config.model_fields)
        close = difflib.get_close_matches(field, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        return f"unknown option {method.name}.{field}; {hint}"
    reason = str(fault["msg"]).removeprefix("Value error, ")
    return f"{method.name}.{field}={fault['input']!r}: {reason}"
