"""What a method is: a config, and a function from plan to plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from pydantic import ValidationError
from torch import nn

from vitslim.errors import ConfigError
from vitslim.shapes import Config
from vitslim.trunk import Plan
from vitslim.validation import describe_faults


@runtime_checkable
class Evidence(Protocol):
    """What a method may read of an analysis: the skip set it recommends.

    ``recommended`` has ``layers``, as an attribute (``AnalysisReport``) or as an entry (the same read from its file).
    """

    @property
    def recommended(self) -> Any: ...


def recommended_layers(evidence: Evidence) -> tuple[int, ...]:
    """The skip set of an analysis."""
    found = evidence.recommended
    return tuple(cast("Mapping[str, Any]", found)["layers"] if isinstance(found, Mapping) else found.layers)


def block_similarity(evidence: Evidence) -> list[list[float | None]]:
    """CKA between the outputs of all pairs of blocks.

    Raises:
        ConfigError: the analysis has none.
    """
    found = getattr(evidence, "cka", None)
    table = (
        cast("Mapping[str, Any]", found).get("block") if isinstance(found, Mapping) else getattr(found, "block", None)
    )
    if table is None:
        raise ConfigError("this analysis has no similarity of blocks (cka.block); analyze the model again")
    return [list(row) for row in table]


class MethodConfig(Config):
    """Options of one method, as people write them in Python too: what cannot be used is a ``ConfigError``."""

    if not TYPE_CHECKING:  # to editors the arguments stay the fields

        def __init__(self, **options: Any) -> None:
            try:
                super().__init__(**options)
            except ValidationError as error:
                faults = "; ".join(describe_faults(error, type(self)))
                raise ConfigError(f"{type(self).__name__}: {faults}") from None

        # For pydantic: no other way to make one, so that reading plain data gives its own error.
        __init__.__pydantic_base_init__ = True


@dataclass(frozen=True)
class Advised:
    """The option of a method that an analysis can decide.

    ``None`` is decided by context: what the analysis recommends where one is given, else the usual. ``"auto"`` demands
    an analysis.

    Args:
        option: the field of the config.
        usual: the word that asks for the usual, whatever an analysis says.
        recommend: what an analysis recommends for a plan; a ``ConfigError`` where it recommends nothing.
    """

    option: str
    usual: str
    recommend: Callable[[Any, Plan, Evidence], tuple[Any, ...]]


@dataclass(frozen=True)
class Method:
    """One row of the table of methods.

    Args:
        name: as users type it.
        config: its options; the type names the method in ``convert(model, SkipAtConfig(...))``.
        resolve: turns what the user asked for into plain options for this plan (``layers="auto"`` becomes numbers),
            checking everything; what it returns is what a saved model replays.
        apply: the new plan; must not fail for a resolved config, nor change the plan's blocks before it is sure.
        source: where the method comes from.
        finish: what changes outside the blocks, on the converted copy; refuses before it changes anything.
        advised: the option that an analysis can decide; without one the method reads no analysis.
    """

    name: str
    config: type[Config]
    resolve: Callable[[Any, Plan, Evidence | None], Config]
    apply: Callable[[Plan, Any], Plan]
    source: str
    finish: Callable[[nn.Module, Any], None] | None = None
    advised: Advised | None = None

    def reads_analysis(self, config: Config) -> bool:
        """Whether these options leave something to an analysis."""
        return self.advised is not None and getattr(config, self.advised.option) in (None, "auto")
