"""One way to run a model, whatever it was made into."""

from vitslim.runtime.artifact import open_artifact
from vitslim.runtime.copying import working_copy
from vitslim.runtime.onnx_runner import OrtRunner
from vitslim.runtime.runner import Precision, Runner, TensorSpec
from vitslim.runtime.torch_runner import TorchRunner

__all__ = ["OrtRunner", "Precision", "Runner", "TensorSpec", "TorchRunner", "open_artifact", "working_copy"]
