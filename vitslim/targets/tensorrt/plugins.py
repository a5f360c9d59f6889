"""How vitslim's plugin comes into an engine: from its library, or compiled in by TensorRT."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitslim.errors import MissingDependencyError
from vitslim.plugin import ahead_of_time_obstacle
from vitslim.runtime.engine import PluginForm
from vitslim.targets.tensorrt.options import EngineOptions


@dataclass(frozen=True)
class PluginPlan:
    """The form in which the engine should have its plugins, and the library that has them, if one does."""

    form: PluginForm
    library: Path | None = None

    def request(self) -> dict[str, Any]:
        """What the builder's process is given."""
        package = str(Path(__file__).parents[3])  # what holds vitslim
        return {"form": self.form, "library": self.library and str(self.library.resolve()), "package": package}


def plan_plugins(options: EngineOptions, library: str | Path | None) -> PluginPlan | None:
    """The way that the options and the machine allow, ``None`` for plain operators.

    A library comes first, carried inside the engine unless it is asked to stay outside. Without one TensorRT bakes in
    the same kernel, compiled by Triton.

    Raises:
        MissingDependencyError: plugins were demanded, and there is no way to them.
    """
    if options.plugins == "off" or options.flavor == "rtx":
        return None
    if library is not None:
        return PluginPlan("external" if options.plugins == "external" else "embedded", Path(library))
    obstacle = "the library has to stay outside" if options.plugins == "external" else ahead_of_time_obstacle()
    if obstacle is None:
        return PluginPlan("ahead-of-time")
    if options.plugins == "auto":
        return None
    raise MissingDependencyError(
        f"--plugins {options.plugins}: no plugin library is built; make it with `vitslim plugin build "
        f"--tensorrt-include DIR`, or name it in VITSLIM_PLUGIN_LIBRARY. Nor can TensorRT compile it in: {obstacle}"
    )
