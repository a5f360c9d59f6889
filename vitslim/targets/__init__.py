"""What models are exported to, with the proof that what was written is the same model.

A target is one file and one line here; other packages add theirs through the entry point group ``vitslim.targets``.
"""

from vitslim.targets.aotinductor import AotInductorTarget
from vitslim.targets.base import (
    TARGETS,
    Backend,
    ExportRequest,
    Opening,
    Target,
    Timing,
    Written,
    find_backend,
    list_targets,
    register_target,
    target_of,
    verify,
)
from vitslim.targets.onnx.target import OnnxTarget
from vitslim.targets.openvino.server import OpenVinoServerTarget
from vitslim.targets.openvino.target import OpenVinoTarget
from vitslim.targets.tensorrt.target import RtxTarget, TensorrtTarget
from vitslim.targets.torch_eager import TorchTarget
from vitslim.targets.torch_export import TorchExportTarget
from vitslim.targets.triton.target import TritonServerTarget

__all__ = [
    "TARGETS",
    "AotInductorTarget",
    "Backend",
    "ExportRequest",
    "OnnxTarget",
    "OpenVinoServerTarget",
    "OpenVinoTarget",
    "Opening",
    "RtxTarget",
]
__all__ += ["Target", "TensorrtTarget", "Timing", "TorchExportTarget", "TorchTarget", "TritonServerTarget"]
__all__ += ["Written", "find_backend", "list_targets", "register_target", "target_of", "verify"]
