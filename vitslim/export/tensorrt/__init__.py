"""Building engines for TensorRT and TensorRT-RTX out of exported ONNX files."""

from vitslim.export.tensorrt.build import build_engine, describe
from vitslim.export.tensorrt.options import EngineOptions, parse_sizes
from vitslim.export.tensorrt.refit import options_of, refit_engine
from vitslim.export.tensorrt.source import precision_of

__all__ = ["EngineOptions", "build_engine", "describe", "options_of", "parse_sizes", "precision_of", "refit_engine"]
