"""Opening ONNX files, without the weights that lie beside them."""

from pathlib import Path
from typing import Any

from vitslim.errors import CheckpointError, MissingDependencyError
from vitslim.targets.onnx.weights import external_files


def read_header(path: str | Path) -> Any:
    """An ONNX file without the weights that lie beside it, which are there.

    Raises:
        CheckpointError: it is missing, or is no ONNX file, or its weights are missing.
        MissingDependencyError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise MissingDependencyError("reading an ONNX file needs onnx: pip install 'vitslim[onnx]'") from None
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; write it with `vitslim export DIR --to onnx`")
    try:
        header: Any = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own class, which moves between versions
        raise CheckpointError(f"{path} is not an ONNX file ({error}); it may be truncated, export it again") from None
    if not header.graph.node:
        raise CheckpointError(f"{path} is not an ONNX file with a graph; it may be truncated, export it again")
    external_files(header, path)
    return header


def metadata_in(model: Any) -> dict[str, str]:
    """What a loaded file says about itself."""
    return {entry.key: entry.value for entry in model.metadata_props}
