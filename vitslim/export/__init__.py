"""Writing a model for a runtime, with the proof that it is the same model."""

from vitslim.export.onnx_export import OPSETS, check_export, export_onnx
from vitslim.export.onnx_types import broken_promises, operator_types, require_precision
from vitslim.export.parity import require_parity, verify
from vitslim.export.result import OnnxExport, ParityCheck, ParityReport, Tolerance
from vitslim.export.tolerances import TOLERANCES

__all__ = [
    "OPSETS",
    "TOLERANCES",
    "OnnxExport",
    "ParityCheck",
    "ParityReport",
    "Tolerance",
    "broken_promises",
    "check_export",
    "export_onnx",
    "operator_types",
    "require_parity",
    "require_precision",
    "verify",
]
