"""Computations on CPU tensors that go through the ops' forms for a GPU, with Triton's interpreter in its place."""

import importlib
import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.kernels.triton.closeness import drawn
from vitslim.kernels import serving
from vitslim.kernels.key_bits import bits_of_keys

LINEAR = ((36, 20), (36, 3), (3, 20))
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
    "argsort_by_score": "token_selection._argsort_by_score_cuda",
    "gather_split": "token_selection._gather_split_cuda",
    "scatter_back": "token_selection._scatter_back_cuda",
    "gather_split_normed": "normed_selection._gather_split_normed_cuda",
    "gather_split_normed_backward": "normed_selection._gradients_cuda",
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


def joined(parts: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """Queries, keys, values of a joined projection, and gradients that lie as the outputs do."""
    return list(drawn(2, 17, parts, 3, 16, dtype=dtype, device=device).permute(2, 0, 3, 1, 4).unbind(0))


def operands(name: str, dtype: torch.dtype, device: str, *, parameters: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Arguments of the op of this name, many of them parts of larger tensors.

    Args:
        name: of the op.
        dtype: of tokens and matrices.
        device: where they lie.
        parameters: type of the convolution's weight and of LayerNorm's: float32 under autocast, whatever tokens are.
    """
    query, key, value, grad = joined(4, dtype, device)
    coefficients = torch.rand(2, 3, 15, 4, generator=torch.Generator().manual_seed(0)).to(device, parameters)
    basis = torch.rand(4, 17, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    kept = torch.rand(2, 3, 4, 17, generator=torch.Generator().manual_seed(2)).topk(5, dim=-1).indices.to(device)
    bits, wide = bits_of_keys(kept, 17), drawn(2, 11, 24, dtype=dtype, device=device)
    rows = wide[:, :, :20]
    indices = torch.rand(2, 11, generator=torch.Generator().manual_seed(3)).argsort(dim=1).to(device)
    convolution = (drawn(20, 1, 3, 3, dtype=parameters, device=device), drawn(20, dtype=dtype, device=device), 2, 5)
    norm = [drawn(20, dtype=parameters, device=device, seed=seed) for seed in (4, 5)]
    norms, dense = drawn(2, 4, 20, dtype=parameters, device=device), drawn(2, 4, 20, dtype=dtype, device=device)
    sums = torch.zeros(2, 3, 17, device=device)
    return {
        "kept_bits": (coefficients, basis, 2, 6, 1, 2),
        "kept_keys": (coefficients.transpose(1, 2).contiguous().transpose(1, 2), basis, 2, 6, 4, 2),
        "bit_attention": (query, key, value, bits, 4, 2, 0.3),
        "tile_attention": (query, key, value, kept, 4, 2, 0.3),
        "bit_attention_backward": (grad, query, key, value, bits, value, sums, 4, 2, 0.3),
        "depthwise_gelu": (rows, *convolution),
        "depthwise_gelu_backward": (rows[:, 1:], rows, *convolution),
        "channel_attention": (rows[:, :1], rows[:, 1:], drawn(1, 1, 3, dtype=dtype, device=device), rows[:, 1:]),
        "token_sums": (rows, wide[:, :, 4:]),
        "low_rank_linear": (rows, *(drawn(*shape, dtype=dtype, device=device) for shape in LINEAR), None, True),
        "class_row": (query[:, :, :1], key, 0.3),
        "argsort_by_score": (wide[:, :, 0], 1),
        "gather_split": (rows[:, :7], rows[:, 7:], indices, 4),
        "scatter_back": (rows[:, :7], rows[:, 7:], indices, 4),
        "gather_split_normed": (rows[:, :7], rows[:, 7:], indices, 4, *norm, 1e-6),
        "gather_split_normed_backward": (rows[:, :4], rows[:, 4:], norms, dense, indices, norm[0], 1e-6, 7),
    }[name]
