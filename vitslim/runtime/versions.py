"""Which versions of the libraries that decide a result are installed."""

import platform
from importlib.metadata import PackageNotFoundError, version

LIBRARIES = ("torch", "timm", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "vitslim")


def library_versions() -> dict[str, str | None]:
    """Python and library versions; ``None`` for what is not installed. Nothing is imported to find out."""
    return {"python": platform.python_version(), **{name: installed_version(name) for name in LIBRARIES}}


def installed_version(name: str) -> str | None:
    """The version of a distribution; ``None`` where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
