"""torch itself, which runs a model without writing anything."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from vitslim.runtime import TorchRunner
from vitslim.targets.base import Backend, Target, Timing, register_target


@register_target("torch")
class TorchTarget(Target):
    """Eager, through ``torch.compile``, and that recorded as a CUDA graph; for benchmarks."""

    title = "torch, for benchmarks"
    backends = (
        Backend("torch", on_stream=True, in_torch=True),
        Backend("compiled", on_stream=True, in_torch=True),
        Backend("compiled-graph", needs_gpu=True, on_stream=True, in_torch=True, recorded=True),
    )

    def open_to_time(self, model: nn.Module, folder: Path, how: Timing) -> tuple[TorchRunner, None]:
        compiled, name = how.opening.backend != "torch", how.opening.name
        return TorchRunner(model, compiled=compiled, precision=how.precision, device=how.device, name=name), None
