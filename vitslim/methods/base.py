"""What a method is: options, and a function from plan to plan; how it joins."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, runtime_checkable

from pydantic import ValidationError

from vitslim.arguments import checked
from vitslim.errors import ConfigError
from vitslim.methods.choice import OptionValue
from vitslim.plans import Choice, ModelPlan, changed_blocks, register_choice
from vitslim.registry import Registry
from vitslim.shapes import Config
from vitslim.trunk import register_realiser
from vitslim.trunk.build import Realiser
from vitslim.validation import describe_errors


@runtime_checkable
class Evidence(Protocol):
    """What a method may read of an analysis: an ``AnalysisReport``, or the same read from its file."""

    @property
    def recommended(self) -> Any: ...


def evidence_of(evidence: Evidence, *path: str) -> Any:
    """One figure of an analysis by its path, such as ``("cka", "block")``; ``None`` where there is none."""
    found: Any = evidence
    for name in path:
        found = cast("Mapping[str, Any]", found).get(name) if isinstance(found, Mapping) else getattr(found, name, None)
        if found is None:
            return None
    return found


def require_evidence(evidence: Evidence, *path: str) -> Any:
    """``evidence_of``, where it has to be there.

    Raises:
        ConfigError: the analysis has no such figure.
    """
    found = evidence_of(evidence, *path)
    if found is None:
        raise ConfigError(f"this analysis has no {'.'.join(path)}; analyze the model again")
    return found


class MethodConfig(Config):
    """Options of one method, as people write them in Python too: what cannot be used is a ``ConfigError``."""

    if not TYPE_CHECKING:  # to editors the arguments stay the fields

        def __init__(self, **options: Any) -> None:
            try:
                super().__init__(**options)
            except ValidationError as error:
                errors = "; ".join(describe_errors(error, type(self)))
                raise ConfigError(f"{type(self).__name__}: {errors}") from None

        # For pydantic: no other way to make one, so that reading plain data gives its own error.
        __init__.__pydantic_base_init__ = True


C = TypeVar("C", bound=MethodConfig)
Change = Callable[[ModelPlan, C, "Evidence | None"], ModelPlan]


def _default_alone(plan: ModelPlan) -> Sequence[Mapping[str, Any]]:
    return ({},)


@dataclass(frozen=True)
class Method:
    """One method.

    Args:
        name: as users type it.
        config: its options; the type names the method in ``convert(model, SkipAtConfig(...))``.
        change: from a plan, options and perhaps an analysis to the new plan. What cannot be done with these options is
            a ``ConfigError``; what the new plan cannot have, ``check`` finds.
        source: where the method comes from.
        advised: the option that an analysis decides where it is ``None``; ``None`` for a method that reads none.
        chosen: the value of that option as the plans before and after the method show it.
        usual: the value of that option which asks for the usual, whatever an analysis says.
        neutral: options with which it leaves a dense plan as it is.
        example: options with which it changes a model of four blocks; support matrix and tests use it.
        forms: more options by the name of the form, for what composes in another way than the example.
        strengths: for a dense plan the options that the planner tries, the mildest first; the defaults unless given.
    """

    name: str
    config: type[MethodConfig]
    change: Change[Any]
    source: str
    advised: str | None = None
    chosen: Callable[[ModelPlan, ModelPlan], OptionValue] = changed_blocks
    usual: str | None = None
    neutral: Mapping[str, Any] = field(default_factory=dict[str, Any])
    example: Mapping[str, Any] = field(default_factory=dict[str, Any])
    forms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    strengths: Callable[[ModelPlan], Sequence[Mapping[str, Any]]] = _default_alone

    def reads_analysis(self, config: Config) -> bool:
        """Whether these options leave something to an analysis."""
        return self.advised is not None and getattr(config, self.advised) in (None, "auto")


METHODS: Registry[Method] = Registry("method", "vitslim.methods")
"""All methods by name; those of other packages come through the entry point group ``vitslim.methods``."""


@checked
def register_method(
    name: str,
    config: type[C],
    *,
    source: str,
    modules: Mapping[type[Choice], Realiser] | None = None,
    **options: Any,
) -> Callable[[Change[C]], Change[C]]:
    """Register the decorated function as a method, and the choices that it brings with how they are built.

    Args:
        name: as users type it.
        config: its options.
        source: where the method comes from.
        modules: for each new kind of choice, a function from the choice and its ``Site`` to the module of its axis.
        options: the other fields of ``Method``.

    Raises:
        ConfigError: the name, or a kind of choice, is taken.
    """

    def register(change: Change[C]) -> Change[C]:
        METHODS.register(name, Method(name, config, change, source, **options))
        for choice, realiser in (modules or {}).items():
            register_choice(choice)
            register_realiser(choice, realiser)
        return change

    return register
