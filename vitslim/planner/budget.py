"""What a plan may cost, in the one measure that a person names."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from vitslim.errors import ConfigError
from vitslim.plans import ModelPlan, cost
from vitslim.shapes import Config

Measure = Literal["time", "macs", "parameters"]

_OPTIONS = {
    "speedup": "--speedup 1.5",
    "latency_ms": "--latency-ms 5",
    "macs": "--macs 2.9",
    "params": "--params 15",
    "file_mib": "--file-mib 40",
    "max_drop": "--max-drop 1",
}
_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
LADDER = (1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)
"""Speedups that are tried for the fastest plan that loses little."""


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
    file_mib: float | None = Field(default=None, gt=0)
    """Weights in the runtime's precision, in MiB."""
    max_drop: float | None = Field(default=None, gt=0, le=100)
    """The fastest plan whose loss of accuracy after its short training is at most so many points."""

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
        return "parameters" if self.params is not None or self.file_mib is not None else "time"

    def describe(self) -> str:
        """As it is typed: ``--speedup 1.5``."""
        ((name, value),) = self.model_dump(exclude_none=True).items()
        return f"--{name.replace('_', '-')} {value:g}"

    def limit(self, dense: ModelPlan, dense_ms: float | None, precision: str = "fp32") -> float:
        """The most that a plan may cost, as a share of the dense model.

        Args:
            dense_ms: latency of the dense model in the runtime; needed for ``latency_ms``.
            precision: in which weights are stored, for ``file_mib``.

        Raises:
            ConfigError: the dense model itself is within the budget, or it names no cost (``max_drop``).
        """
        if self.max_drop is not None:
            raise ConfigError(
                "a loss of accuracy is no cost; plan for several speedups and take the fastest that keeps it"
            )
        if self.speedup is not None:
            return 1.0 / self.speedup
        (given,) = self.model_dump(exclude_none=True).values()
        has, unit = self.dense_has(dense, dense_ms, precision)
        if given >= has:
            raise ConfigError(f"the dense model has {has:.4g} {unit} and is within the budget of {given:g} already")
        return given / has

    def dense_has(self, dense: ModelPlan, dense_ms: float | None, precision: str) -> tuple[float, str]:
        """What the dense model has of what is limited, with the unit; see ``limit``."""
        whole = cost(dense)
        if self.measure == "time":
            assert dense_ms is not None
            return dense_ms, "ms"
        if self.macs is not None:
            return whole.macs / 1e9, "GMAC"
        if self.params is not None:
            return whole.parameters / 1e6, "million parameters"
        return whole.parameters * _BYTES[precision] / 2**20, f"MiB of weights in {precision}"
