"""One way to run a model, whatever it was made into."""

from vitslim.runtime.artifact import BACKENDS, load, open_artifact
from vitslim.runtime.copying import working_copy
from vitslim.runtime.cuda_graph import CapturedRun
from vitslim.runtime.engine import EngineRecord
from vitslim.runtime.onnx_runner import OrtRunner
from vitslim.runtime.runner import Precision, Runner, TensorSpec, host_buffer
from vitslim.runtime.torch_runner import TorchRunner
from vitslim.runtime.trt_runner import TrtRunner

__all__ = [
    "BACKENDS",
    "CapturedRun",
    "EngineRecord",
    "OrtRunner",
    "Precision",
    "Runner",
    "TensorSpec",
    "TorchRunner",
    "TrtRunner",
    "host_buffer",
    "load",
    "open_artifact",
    "working_copy",
]
