"""What is known of an ONNX file that was written."""

from typing import Literal

from vitslim.runtime import Precision
from vitslim.shapes import Result
from vitslim.targets.sensitivity import Sensitivity


class TensorInfo(Result):
    """An input or output as the file declares it; ``None`` in the shape takes any size."""

    name: str
    shape: list[int | None]
    dtype: str


class OnnxExport(Result):
    """An ONNX file that was written: what is in it, what the exporter said on the way.

    ``functions`` are the local functions whose nodes a plugin may take. ``types`` counts the nodes of each operator by
    element type, as read back from the graph. ``data_file`` holds the weights that one file cannot; ``size_bytes`` and
    ``sha256`` are the file's own, and the file knows the digest of its data. ``notes`` are for the user, ``log`` is
    what other libraries printed. ``sensitivity`` is of INT8: what it loses, and which blocks stayed in float for that.
    """

    file: str
    precision: Precision
    opset: int
    batch: Literal["dynamic"] | int
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    operators: dict[str, int]
    functions: list[str]
    types: dict[str, dict[str, int]]
    optimized: bool
    size_bytes: int
    sha256: str
    data_file: str | None
    data_bytes: int
    metadata: dict[str, str]
    notes: list[str]
    log: list[str]
    sensitivity: Sensitivity | None = None
