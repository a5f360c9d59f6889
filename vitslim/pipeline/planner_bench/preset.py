"""What the benchmark of the planner compares, read from YAML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt

from vitslim.errors import ConfigError
from vitslim.planner import PlannerConfig, RuntimeConfig
from vitslim.recipe import DataSection, ModelSection, read_settings_file, with_overrides
from vitslim.shapes import Config
from vitslim.train import DistillConfig, WarmStartConfig
from vitslim.validation import validated

PRESETS = ("cpu", "gpu")


class Rival(Config):
    """A simpler way, at one strength or at several, the mildest first."""

    convert: tuple[dict[str, Any], ...] = Field(min_length=1)  # as in a recipe
    option: str | None = None  # of the last method, that takes the values
    values: tuple[Any, ...] = ()
    warm_start: WarmStartConfig | None = WarmStartConfig(steps=0, tensorboard=False)

    def entries(self) -> list[tuple[Mapping[str, Any], ...]]:
        """The methods at every strength."""
        if self.option is None:
            return [self.convert]
        *before, last = self.convert
        return [(*before, {**last, self.option: value}) for value in self.values]


class Task(Config):
    """A model, its images and the budget of all its students."""

    model: ModelSection
    data: DataSection
    teacher: DistillConfig | None = None  # of a model that has to be trained first, from nothing
    distill: DistillConfig
    siblings: tuple[dict[str, Any], ...] = ()  # arguments of smaller models of the same kind, the largest first


class PlannerPreset(Config):
    """What is compared."""

    device: str = "cpu"
    runtimes: tuple[RuntimeConfig, ...] = Field(min_length=1)
    speedups: tuple[float, ...] = Field(min_length=1)
    seeds: tuple[NonNegativeInt, ...] = Field(min_length=1)
    close: float = Field(default=1.0, ge=0)  # points below the best of the first seed that rule out the other seeds
    planner: PlannerConfig = PlannerConfig()
    checked: tuple[RuntimeConfig, ...] = ()  # in which predicted times are compared with measured ones
    checked_plans: int = Field(default=30, ge=0)
    tasks: dict[str, Task | None]  # null: left out
    rivals: dict[str, Rival]
    define: Any = None  # lists that others repeat


def read_preset(name: str, overrides: Iterable[str] = ()) -> PlannerPreset:
    """A preset by its name, or out of a YAML file of the same form.

    Raises:
        ConfigError: no such preset, or a faulty one.
    """
    if name not in PRESETS and not Path(name).is_file():
        raise ConfigError(f"unknown preset {name!r}; wanted {', '.join(PRESETS)} or a YAML file")
    shipped = resources.files("vitslim") / "assets" / f"planner_{name}.yaml"
    document = read_settings_file(str(shipped) if name in PRESETS else name, "settings such as tasks and rivals")
    return validated(PlannerPreset, with_overrides(document, overrides), f"preset {name}: ")
