"""Writing a model for a runtime, with the proof that it is the same model."""

from vitslim.export.onnx_export import OPSETS, export_onnx
from vitslim.export.parity import TOLERANCES, require_parity, verify
from vitslim.export.result import OnnxExport, ParityCheck, ParityReport, Tolerance

__all__ = [
    "OPSETS",
    "TOLERANCES",
    "OnnxExport",
    "ParityCheck",
    "ParityReport",
    "Tolerance",
    "export_onnx",
    "require_parity",
    "verify",
]
