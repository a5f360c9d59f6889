"""Recording one inference as a CUDA graph, so that starting it costs one call whatever the number of kernels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from vitslim.errors import MissingDependencyError

Given = TypeVar("Given")

_WARMUPS = 3


@dataclass(frozen=True)
class CapturedRun:
    """A recorded inference: fill ``images`` in place, call ``replay``, read ``result``.

    Both tensors keep their addresses, so that other libraries may hold on to them (``data_ptr()`` or DLPack).
    ``replay`` runs on torch's current stream and returns before the GPU is done.
    """

    images: Tensor
    result: Tensor
    replay: Callable[[], None]


def capture(forward: Callable[[Tensor], Tensor], images: Tensor) -> CapturedRun:
    """Record ``forward`` on ``images``, whose memory becomes the input of every replay.

    Args:
        forward: puts all its work on torch's current stream and waits for nothing.
        images: on a GPU.

    Raises:
        MissingDependencyError: the images do not lie on a GPU.
    """
    if images.device.type != "cuda":
        raise MissingDependencyError(f"a CUDA graph needs a GPU, the runner is on {images.device}; call run instead")
    replay, result = record(lambda: forward(images), images.device)
    return CapturedRun(images, result, replay)


def record(call: Callable[[], Given], device: torch.device, times: int = 1) -> tuple[Callable[[], None], Given]:
    """Record a call, or several in a row, and what the last one gave.

    Args:
        call: puts all its work on torch's current stream and waits for nothing.
    """
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    # Libraries compile, choose kernels and allocate at their first calls, which must not be recorded.
    with torch.cuda.stream(side):
        for _ in range(_WARMUPS):
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        for _ in range(times - 1):
            call()
        result = call()
    return graph.replay, result
