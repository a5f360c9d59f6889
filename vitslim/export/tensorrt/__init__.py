"""Building engines for TensorRT and TensorRT-RTX out of exported ONNX files."""

from vitslim.export.tensorrt.build import build_engine, describe
from vitslim.export.tensorrt.options import EngineOptions, parse_sizes

__all__ = ["EngineOptions", "build_engine", "describe", "parse_sizes"]
