"""What a plan may cost, in the one measure that a person names."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vitslim.errors import ConfigError
from vitslim.plans import ModelPlan, cost
from vitslim.shapes import Config

Measure = Literal["time", "macs", "parameters"]

_OPTIONS = {"speedup": "--speedup 1.5", "latency_ms": "--latency-ms 5", "macs": "--macs 2.9", "params": "--params 15"}


class Budget(Config):
    """Exactly one of these."""

    speedup: float | None = Field(default=None, gt=1, le=1000)
    """Over the dense model in the same runtime."""
    latency_ms: float | None = Field(default=None, gt=0)
    """Of one call in the runtime, milliseconds."""
    macs: float | None = Field(default=None, gt=0)
    """Multiply-accumulates of one image, in billions."""
    params: float | None = Field(default=None, gt=0)
    """Parameters, in millions."""

    @model_validator(mode="after")
    def _is_one(self) -> Budget:
        given = [name for name in _OPTIONS if getattr(self, name) is not None]
        if len(given) != 1:
            what = f"given: {', '.join(given)}" if given else "none was given"
            raise ValueError(f"wanted one budget ({', '.join(_OPTIONS.values())}); {what}")
        return self

    @property
    def measure(self) -> Measure:
        """What is limited."""
        if self.macs is not None:
            return "macs"
        return "parameters" if self.params is not None else "time"

    def limit(self, dense: ModelPlan, dense_ms: float | None) -> float:
        """The most that a plan may cost, as a share of the dense model.

        Args:
            dense_ms: latency of the dense model in the runtime; needed for ``latency_ms``.

        Raises:
            ConfigError: the dense model itself is within the budget.
        """
        whole = cost(dense)
        if self.speedup is not None:
            return 1.0 / self.speedup
        given, unit, has = (
            (self.latency_ms, "ms", dense_ms)
            if self.latency_ms is not None
            else (self.macs, "GMAC", whole.macs / 1e9)
            if self.macs is not None
            else (self.params, "million parameters", whole.parameters / 1e6)
        )
        assert given is not None
        assert has is not None
        if given >= has:
            raise ConfigError(f"the dense model has {has:.4g} {unit} and is within the budget of {given:g} already")
        return given / has
