"""The one door to TensorRT's Python modules; they have no type stubs, so what comes through it is ``Any``."""

from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from vitslim.errors import MissingDependencyError

Flavor = Literal["tensorrt", "rtx"]

MODULES: dict[Flavor, str] = {"tensorrt": "tensorrt", "rtx": "tensorrt_rtx"}
TITLES: dict[Flavor, str] = {"tensorrt": "TensorRT", "rtx": "TensorRT-RTX"}

_INSTALL: dict[Flavor, str] = {"tensorrt": "vitslim[tensorrt]", "rtx": "vitslim[rtx]"}

# TensorRT-RTX counts its versions on its own; 1.7 is the first that vitslim was tried with.
OLDEST: dict[Flavor, tuple[int, int]] = {"tensorrt": (10, 12), "rtx": (1, 7)}


def open_api(flavor: Flavor) -> Any:
    """TensorRT's module of one flavor; both offer the same names.

    Raises:
        MissingDependencyError: it is not installed, does not load, or is too old.
    """
    try:
        api = import_module(MODULES[flavor])
    except (ImportError, OSError, RuntimeError) as error:
        raise MissingDependencyError(
            f"{TITLES[flavor]} cannot be loaded ({error}): pip install '{_INSTALL[flavor]}'"
        ) from None
    oldest = OLDEST[flavor]
    if version_numbers(api.__version__)[:2] < oldest:
        raise MissingDependencyError(
            f"{TITLES[flavor]} {api.__version__} is too old; wanted {oldest[0]}.{oldest[1]} or later: "
            f"pip install -U '{_INSTALL[flavor]}'"
        )
    return api


def installed_version(flavor: Flavor) -> str | None:
    """The version of an installed flavor, ``None`` where there is none that loads."""
    if find_spec(MODULES[flavor]) is None:
        return None
    try:
        return str(open_api(flavor).__version__)
    except MissingDependencyError:
        return None


def require_installed(flavor: Flavor) -> str:
    """The version of an installed flavor.

    Raises:
        MissingDependencyError: it is not installed, does not load, or is too old.
    """
    if find_spec(MODULES[flavor]) is None:
        raise MissingDependencyError(f"{TITLES[flavor]} is not installed: pip install '{_INSTALL[flavor]}'")
    return str(open_api(flavor).__version__)


def version_numbers(version: str) -> tuple[int, ...]:
    """``(11, 1, 0)`` from ``11.1.0``; what is no number ends it."""
    numbers: list[int] = []
    for part in version.split("."):
        if not (part.isdecimal() and len(part) < 10):
            break
        numbers.append(int(part))
    return tuple(numbers)


def api_logger(api: Any, lines: list[str]) -> Any:
    """A logger that collects TensorRT's warnings and errors in ``lines``, ``SEVERITY: message``."""
    quiet = (api.ILogger.Severity.INFO, api.ILogger.Severity.VERBOSE)

    class Collector(api.ILogger):
        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity not in quiet:
                lines.append(f"{severity.name}: {message}")

    return Collector()
