"""Computations on CPU tensors that go through the ops' forms for a GPU, with Triton's interpreter in its place."""

import importlib
import sys
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.triton.closeness import drawn
from vitslim.kernels import dispatch

FORMS_ON_GPU = {
    "sparse_attention": "sparse_attention._sparse_attention_on_gpu",
    "depthwise_gelu": "skip_function._depthwise_gelu_cuda",
    "depthwise_gelu_backward": "skip_function._depthwise_gelu_backward_cuda",
    "class_row": "token_selection._class_row_cuda",
    "argsort_by_score": "token_selection._argsort_by_score_cuda",
    "gather_split": "token_selection._gather_split_cuda",
    "scatter_back": "token_selection._scatter_back_cuda",
}


def form_on_gpu(op: str) -> Any:
    """The function that the op of this name runs on a GPU."""
    module, function = FORMS_ON_GPU[op].split(".")
    return getattr(importlib.import_module(f"vitslim.kernels.{module}"), function)


def through_ops(patch: pytest.MonkeyPatch, answer: Any = lambda *_: not dispatch.traces_a_file()) -> None:
    """As on a GPU, wherever the question is asked; ``answer`` takes the place of ``use_triton``."""
    for name, module in list(sys.modules.items()):
        if name.startswith("vitslim.") and hasattr(module, "use_triton"):
            patch.setattr(module, "use_triton", answer)


class OnKernels(TorchDispatchMode):
    """Runs vitslim's ops in their form for a GPU, and remembers which; wants ``through_ops``."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "vitslim":
            return func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.called.add(name)
        return form_on_gpu(name)(*args) if name in FORMS_ON_GPU else func(*args)


def operands(name: str, dtype: torch.dtype, device: str, *, parameters: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Arguments of the op of this name, many of them parts of larger tensors.

    Args:
        name: of the op.
        dtype: of tokens and matrices.
        device: where they lie.
        parameters: type of the convolution's weight: float32 under autocast, whatever tokens are.
    """
    # As they lie behind a joined projection.
    query, key, value = drawn(2, 37, 3, 3, 16, dtype=dtype, device=device).permute(2, 0, 3, 1, 4).unbind(0)
    kept = torch.rand(2, 3, 3, 37, generator=torch.Generator().manual_seed(2)).topk(5, dim=-1).indices.to(device)
    wide = drawn(2, 11, 24, dtype=dtype, device=device)
    rows = wide[:, :, :20]
    indices = torch.rand(2, 11, generator=torch.Generator().manual_seed(3)).argsort(dim=1).to(device)
    convolution = (drawn(20, 1, 3, 3, dtype=parameters, device=device), drawn(20, dtype=dtype, device=device), 2, 5)
    return {
        "sparse_attention": (query, key, value, kept, None, 16, 2, 0.3),
        "depthwise_gelu": (rows, *convolution),
        "depthwise_gelu_backward": (rows[:, 1:], rows, *convolution),
        "class_row": (query[:, :, :1], key, 0.3),
        "argsort_by_score": (wide[:, :, 0], 1),
        "gather_split": (rows[:, :7], rows[:, 7:], indices, 4),
        "scatter_back": (rows[:, :7], rows[:, 7:], indices, 4),
    }[name]
