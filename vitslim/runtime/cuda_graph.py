"""Recording one inference as a CUDA graph, so that starting it costs one call whatever the number of kernels."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vitslim.errors import MissingDependencyError

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
    side = torch.cuda.Stream(images.device)
    side.wait_stream(torch.cuda.current_stream(images.device))
    # Libraries choose kernels and allocate at their first calls, which must not be recorded.
    with torch.cuda.stream(side):
        for _ in range(_WARMUPS):
            forward(images)
    torch.cuda.current_stream(images.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        result = forward(images)
    return CapturedRun(images, result, graph.replay)
