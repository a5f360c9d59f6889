"""One training step as something that can be timed like a forward."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vitslim.errors import ConfigError
from vitslim.runtime import Precision, TorchRunner
from vitslim.runtime.cuda_graph import CapturedRun
from vitslim.runtime.runner import DTYPES


class TrainingRunner(TorchRunner):
    """A private copy of a model that learns a fixed label: forward, backward, a step of AdamW.

    As in ``vitslim.train`` the weights are float32 and ``precision`` is autocast's.

    Raises:
        ConfigError: fp16, which would need its gradients scaled.
    """

    COPIES: ClassVar[int] = 3  # of the weights, between two steps: themselves and AdamW's two moments

    def __init__(
        self, model: nn.Module, *, precision: Precision, device: str | torch.device, name: str | None = None
    ) -> None:
        if precision == "fp16":
            raise ConfigError("training steps are measured in fp32 and bf16; fp16 needs its gradients scaled")
        super().__init__(model, device=device, name=name)
        self.backend = "train"
        self.precision = precision
        self._model.requires_grad_(True).train()
        parameters = list(self._model.parameters())
        self._optimizer: Any = torch.optim.AdamW(parameters, lr=1e-5, fused=self.device.type == "cuda")

    def run(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
        """Take one step on ``images``; the loss, one number per image."""
        kind = self.device.type
        with torch.autocast(kind, dtype=DTYPES["bf16"], enabled=self.precision == "bf16"):
            logits = self._model(images.to(self.device))
            labels = torch.zeros(len(images), dtype=torch.int64, device=self.device)
            losses = F.cross_entropy(logits, labels, reduction="none")
        losses.mean().backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return losses.detach().float()

    def capture(self, shape: tuple[int, ...]) -> CapturedRun:
        """Refused: a step allocates its gradients anew."""
        raise ConfigError("a training step is not recorded as a CUDA graph; time run instead")
