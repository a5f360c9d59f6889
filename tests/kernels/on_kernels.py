"""Computations on CPU tensors that go through the ops' forms for a GPU, with Triton's interpreter in its place."""

import importlib
import sys
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from vitslim.kernels import serving

FORMS_ON_GPU = {
    "kept_bits": "bit_attention._kept_bits_on_gpu",
    "bit_attention": "bit_attention._bit_attention_on_gpu",
    "bit_attention_backward": "bit_attention._gradients_on_gpu",
    "tile_attention": "bit_attention._tile_attention_on_gpu",
    "kept_keys": "sparse_attention._kept_keys_on_gpu",
    "depthwise_gelu": "skip_function._depthwise_gelu_cuda",
    "depthwise_gelu_backward": "skip_function._depthwise_gelu_backward_cuda",
    "channel_attention": "skip_function._channel_attention_cuda",
    "token_sums": "skip_function._token_sums_cuda",
    "low_rank_linear": "low_rank_linear._low_rank_linear_on_gpu",
    "class_row": "token_selection._class_row_cuda",
    "ranked": "token_selection._ranked_cuda",
    "taken_apart": "token_selection._taken_apart_cuda",
    "put_back": "token_selection._put_back_cuda",
    "taken_apart_normed": "normed_selection._taken_apart_normed_cuda",
    "taken_apart_normed_backward": "normed_selection._gradients_cuda",
}


def form_on_gpu(op: str) -> Any:
    """The function that the op of this name runs on a GPU."""
    module, function = FORMS_ON_GPU[op].split(".")
    return getattr(importlib.import_module(f"vitslim.kernels.{module}"), function)


def through_ops(patch: pytest.MonkeyPatch) -> None:
    """As on a GPU, wherever the question is asked."""
    for name, module in list(sys.modules.items()):
        if name.startswith("vitslim.") and hasattr(module, "kernels_serve"):
            patch.setattr(module, "kernels_serve", lambda _: not serving.traces_a_file())


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
        return form_on_gpu(name)(*args)
