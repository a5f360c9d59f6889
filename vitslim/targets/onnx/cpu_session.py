"""Running a graph that has no file yet, in ONNX Runtime on the CPU."""

from typing import Any

import torch
from torch import Tensor

from vitslim.errors import CheckFailedError, MissingDependencyError
from vitslim.runtime import Precision
from vitslim.runtime.ort_session import open_session
from vitslim.targets.onnx.rounding import rounding_copy


def cpu_outputs(model: Any, images: Tensor, precision: Precision) -> Tensor:
    """The first output of a graph, float32; bfloat16 is rounded to after every operator, see ``rounding_copy``.

    ONNX Runtime's own optimisation is off, so that the graph is run as it stands.

    Args:
        model: an ``onnx.ModelProto`` below 2 GB.
        images: cast to the type of the graph's input.

    Raises:
        MissingDependencyError: onnxruntime is not installed.
        CheckFailedError: onnxruntime does not run the graph.
    """
    model = rounding_copy(model) if precision == "bf16" else model
    try:
        session = open_session(model.SerializeToString(), threads=torch.get_num_threads(), optimized=False)
        given = session.get_inputs()[0]
        result = session.run(None, {given.name: images.to(_DTYPES[given.type]).numpy()})[0]
    except MissingDependencyError:
        raise
    except Exception as error:  # onnxruntime raises a dozen unrelated classes here
        raise CheckFailedError(f"the exported graph does not run, nothing was written: {error}") from error
    return torch.from_numpy(result).float()


_DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(uint8)": torch.uint8}
