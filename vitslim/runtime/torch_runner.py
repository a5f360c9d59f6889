"""Running a model in torch, eager or compiled."""

from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitslim.errors import MissingDependencyError
from vitslim.runtime.copying import working_copy
from vitslim.runtime.cuda_graph import CapturedRun, capture
from vitslim.runtime.runner import DTYPES, Precision, Runner, TensorSpec

# Every runner compiles the same timm forward anew; torch's default of 8 would be used up by two models at four batch
# sizes, and further ones would run eagerly under the name "compiled".
COMPILATIONS_PER_FUNCTION = 256


class TorchRunner(Runner):
    """A private copy of a torch model, in eval mode and in one precision.

    Args:
        model: stays as it is, on its device and in its mode.
        compiled: through ``torch.compile(fullgraph=True)``; a graph break is an error, not a slow number. On a CPU
            the weights are frozen: each matrix is packed once, as ONNX Runtime does, and not at every call.
        precision: what the copy computes in.
        device: where the copy runs; ``None`` for the model's own device.
        name: how reports call it; the class name by default.

    Raises:
        MissingDependencyError: a CUDA device was asked for and there is none.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        compiled: bool = False,
        precision: Precision = "fp32",
        device: str | torch.device | None = None,
        name: str | None = None,
    ) -> None:
        self.device = _resolve_device(model, device)
        self._dtype = DTYPES[precision]
        self.precision = precision
        self._model = working_copy(model).to(device=self.device, dtype=self._dtype)
        self.name = name or type(self._model).__name__
        self.backend = "compiled" if compiled else "torch"
        self.inputs = (TensorSpec("images", (None, None, None, None), self._dtype),)
        self.outputs = (TensorSpec(output_name(self._model), (None, None), self._dtype),)
        self._forward: Any = self._model
        self._compiled_shapes: set[torch.Size] = set()
        if compiled:
            self._forward = torch.compile(self._model, fullgraph=True, dynamic=False)

    def run(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
        """Logits (or features) of ``images``, float32, on the runner's device."""
        self.require_open()
        images = images.to(device=self.device, dtype=self._dtype)
        if self.backend == "compiled" and images.shape not in self._compiled_shapes:
            self._compile_for(images)
        with torch.no_grad():
            return cast(Tensor, self._forward(images)).float()

    def capture(self, shape: tuple[int, ...]) -> CapturedRun:
        return capture(self.run, torch.zeros(shape, dtype=self._dtype, device=self.device))

    def close(self) -> None:
        super().close()
        self._forward, self._model = None, nn.Module()

    def _compile_for(self, images: Tensor) -> None:
        import torch._dynamo.config as dynamo_config

        limits = cast(Any, dynamo_config).patch(
            recompile_limit=COMPILATIONS_PER_FUNCTION, accumulated_recompile_limit=4 * COMPILATIONS_PER_FUNCTION
        )
        with torch.no_grad(), limits, self._packed_weights():
            self._forward(images)
        self._compiled_shapes.add(images.shape)

    def _packed_weights(self) -> AbstractContextManager[object]:
        # Dynamo and Inductor both read it while they compile; as an option of torch.compile only Inductor would.
        import torch._inductor.config as inductor_config

        return cast(Any, inductor_config).patch(freezing=self.device.type == "cpu")


def output_name(model: nn.Module) -> str:
    """What the model gives: ``logits``, or ``features`` when it has no classifier."""
    return "features" if getattr(model, "num_classes", None) == 0 else "logits"


def _resolve_device(model: nn.Module, device: str | torch.device | None) -> torch.device:
    if device is None:
        parameter = next(model.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device
    wanted = torch.device(device)
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise MissingDependencyError(
            f"device '{device}' was asked for, torch sees no CUDA GPU; use the CPU (--device cpu, device='cpu')"
        )
    return wanted
