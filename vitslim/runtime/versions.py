"""Which versions of the libraries that decide a result are installed."""

import platform
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("torch", "timm", "onnx", "onnxruntime", "onnxruntime-gpu", "vitslim")


def library_versions() -> dict[str, str | None]:
    """Python and library versions; ``None`` for what is not installed. Nothing is imported to find out."""
    return {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
