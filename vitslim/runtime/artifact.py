"""Opening an exported file with the backend that reads it."""

from pathlib import Path

from vitslim.errors import ConfigError
from vitslim.runtime.onnx_runner import OrtRunner
from vitslim.runtime.runner import Runner


def open_artifact(path: str | Path, *, threads: int | None = None) -> Runner:
    """Load an exported file with the backend its suffix names.

    Raises:
        ConfigError: no backend reads files of this suffix.
    """
    if Path(path).suffix != ".onnx":
        raise ConfigError(f"{Path(path).name}: no backend for this suffix; give a .onnx file")
    return OrtRunner(path, threads=threads)
