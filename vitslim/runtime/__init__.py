"""One way to run a model, whatever it was made into."""

from vitslim.runtime.copying import working_copy
from vitslim.runtime.cuda_graph import CapturedRun
from vitslim.runtime.engine import EngineRecord
from vitslim.runtime.onnx_runner import OrtRunner
from vitslim.runtime.openvino_runner import OpenVinoRunner
from vitslim.runtime.runner import Precision, Runner, TensorSpec
from vitslim.runtime.torch_runner import TorchRunner
from vitslim.runtime.trt_runner import TrtRunner

__all__ = [
    "CapturedRun",
    "EngineRecord",
    "OpenVinoRunner",
    "OrtRunner",
    "Precision",
    "Runner",
    "TensorSpec",
    "TorchRunner",
    "TrtRunner",
    "working_copy",
]
