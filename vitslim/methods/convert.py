"""A model and a method, or a plan, in; a converted copy out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import InstanceOf, ValidationError
from torch import nn

from vitslim.arguments import checked
from vitslim.errors import ConfigError, VitslimError
from vitslim.methods.base import METHODS, Evidence, Method, MethodConfig
from vitslim.models import describe
from vitslim.plans import ModelPlan, check
from vitslim.trunk import Conversion, build, is_converted, plan_of, trunk_of
from vitslim.validation import describe_errors


@checked
def convert(
    model: nn.Module,
    method: str | InstanceOf[MethodConfig] | None = None,
    *,
    plan: InstanceOf[ModelPlan] | None = None,
    analysis: Evidence | None = None,
    **options: Any,
) -> nn.Module:
    """Convert a pretrained ViT; the given model stays as it is and shares nothing with the copy that comes back.

    Args:
        model: a dense or already converted timm model.
        method: the method's name with ``options``, or its config.
        plan: what to make of the model, in place of a method.
        analysis: decides the options that are left to it (``None``), and is needed by those that say ``"auto"``.
        options: fields of the method's config.

    Returns:
        A model of the same timm class whose ``blocks`` are a ``Trunk``. New parameters are not trained yet.

    Raises:
        ConfigError: unknown method or option, a value out of range, a plan that cannot be built, or a method that was
            applied before.
        UnsupportedModelError: no adapter knows the model.
    """
    if (method is None) == (plan is None):
        raise ConfigError("give a method (such as 'depth'), or a plan, and not both")
    if plan is not None:
        if options:
            raise ConfigError(f"options ({', '.join(options)}) belong to a method; a plan has them already")
        return _built(model, plan, None)
    chosen, config = read_method(method, options)
    return _built(model, planned(chosen, config, plan_of(model), analysis, _history(model)), _entry(chosen, config))


def planned(
    method: Method,
    config: MethodConfig,
    plan: ModelPlan,
    analysis: Evidence | None = None,
    history: tuple[Conversion, ...] = (),
) -> ModelPlan:
    """The plan that a method makes of another one; no model is touched.

    Raises:
        ConfigError: the options do not fit the plan, or the new plan cannot be built; every reason is named.
    """
    done = [entry.method for entry in history]
    if method.name in done:
        raise ConfigError(
            f"the model was already converted with {method.name!r} (history: {', '.join(done)}); "
            "start again from the dense model with other options"
        )
    changed = method.change(plan, config, analysis)
    errors = check(changed)
    if errors:
        raise ConfigError(f"{method.name}: " + "; ".join(errors))
    return changed


def read_method(method: str | MethodConfig | None, options: Mapping[str, Any]) -> tuple[Method, MethodConfig]:
    """The method that a name or a config stands for, with its options.

    Raises:
        ConfigError: there is no such method, or its options cannot be used.
    """
    if isinstance(method, MethodConfig):
        if options:
            given = ", ".join(options)
            raise ConfigError(
                f"options ({given}) were given beside a {type(method).__name__}; put them into the config"
            )
        found = next((entry for _, entry in METHODS.items() if type(method) is entry.config), None)
        if found is None:
            known = ", ".join(entry.config.__name__ for _, entry in METHODS.items())
            raise ConfigError(f"{type(method).__name__} is not a method's config; wanted one of {known}")
        return found, method
    found = METHODS.get(str(method))
    return found, read_options(found, options)


def read_options(method: Method, options: Mapping[str, Any]) -> MethodConfig:
    """The method's config from plain options, all errors reported together.

    Raises:
        ConfigError: unknown fields (with the nearest known one) or unusable values.
    """
    try:
        return method.config.model_validate(dict(options))
    except ValidationError as error:
        errors = describe_errors(error, method.config)
        raise ConfigError("; ".join(_named(method, error) for error in errors)) from None


def method_support(plan: ModelPlan, history: tuple[Conversion, ...] = ()) -> dict[str, dict[str, Any]]:
    """For every method whether its default form can change this plan, and the reason if not."""
    found: dict[str, dict[str, Any]] = {}
    for name, method in METHODS.items():
        try:
            planned(method, method.config(), plan, None, history)
            found[name] = {"supported": True, "reason": ""}
        except VitslimError as error:
            found[name] = {"supported": False, "reason": str(error)}
    return found


def _built(source: nn.Module, plan: ModelPlan, entry: Conversion | None) -> nn.Module:
    base = trunk_of(source).base if is_converted(source) else describe(source)
    return build(plan, source, history=(*_history(source), *((entry,) if entry else ())), base=base)


def _history(model: nn.Module) -> tuple[Conversion, ...]:
    return trunk_of(model).history if is_converted(model) else ()


def _entry(method: Method, config: MethodConfig) -> Conversion:
    return Conversion(method.name, config.model_dump(mode="json", exclude_defaults=True))


def _named(method: Method, error: str) -> str:
    unknown = error.partition("unknown key ")[2]
    return f"unknown option {method.name}.{unknown.replace(chr(39), '', 2)}" if unknown else f"{method.name}.{error}"
