"""Handing an exported model to what serves it."""

from vitslim.deploy.aotinductor import AotPackage, compile_package
from vitslim.deploy.program import ProgramExport, write_program
from vitslim.deploy.quantization import QuantizedOnnx, quantize_onnx
from vitslim.deploy.servable import Servable, choose_artifact, read_servable
from vitslim.deploy.triton import TritonRepository, write_model_repository

__all__ = [
    "AotPackage",
    "ProgramExport",
    "QuantizedOnnx",
    "Servable",
    "TritonRepository",
    "choose_artifact",
    "compile_package",
    "quantize_onnx",
    "read_servable",
    "write_model_repository",
    "write_program",
]
