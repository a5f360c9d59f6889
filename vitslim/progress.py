"""How long-running work tells its caller where it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Progress:
    """One report of a stage: ``done`` of ``total`` units (``None``: not known), with the figures of the moment."""

    stage: str
    done: int
    total: int | None = None
    unit: str = "img"
    metrics: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


ProgressCallback = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """Take a report and say nothing: the default of every ``progress`` argument."""
