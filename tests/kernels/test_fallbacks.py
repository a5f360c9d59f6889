"""The ops on a GPU where no kernel serves: the same plain forms as on a CPU."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

from vitslim.kernels.key_bits import bits_of_keys

ops = torch.ops.vitslim
# No kernel takes float64.
EXACT: dict[str, Any] = {"dtype": torch.float64}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), **EXACT)


def keys() -> Tensor:
    return drawn(2, 3, 4, 17, seed=9).topk(5, dim=-1).indices


def attention() -> list[Tensor]:
    return [drawn(2, 3, 17, width, seed=width) for width in (8, 8, 6)]


def backward() -> tuple[Any, ...]:
    bits = bits_of_keys(keys(), 17)
    mixed, lse = ops.bit_attention(*attention(), bits, 4, 2, 0.3)
    return drawn(2, 3, 17, 6), *attention(), bits, mixed, lse, 4, 2, 0.3


def convolution() -> tuple[Any, ...]:
    return drawn(2, 8, 4), drawn(4, 1, 3, 3), drawn(4), 2, 3


def moved() -> tuple[Any, ...]:
    return drawn(2, 4, 3), drawn(2, 5, 3), drawn(2, 9).argsort(dim=1), 7


def shared_map() -> tuple[Any, ...]:
    return drawn(2, 3, 6), drawn(5, 6), drawn(5, 2), drawn(2, 6), None, True


def normed() -> tuple[Any, ...]:
    return *moved(), drawn(3), drawn(3, seed=1), 1e-6


def normed_backward() -> tuple[Any, ...]:
    active, waiting, behind = ops.taken_apart_normed(*normed())
    return active, waiting, behind, drawn(2, 7, 3, seed=2), moved()[2], drawn(3), 1e-6, 4


CALLS = {
    "bit_attention._kept_bits_on_gpu": (ops.kept_bits, lambda: (drawn(2, 3, 15, 4), drawn(4, 17), 2, 6, 4, 2)),
    "bit_attention._bit_attention_on_gpu": (
        ops.bit_attention,
        lambda: (*attention(), bits_of_keys(keys(), 17), 4, 2, 0.3),
    ),
    "bit_attention._tile_attention_on_gpu": (ops.tile_attention, lambda: (*attention(), keys(), 4, 2, 0.3)),
    "bit_attention._gradients_on_gpu": (ops.bit_attention_backward, backward),
    "sparse_attention._kept_keys_on_gpu": (ops.kept_keys, lambda: (drawn(2, 3, 15, 4), drawn(4, 17), 2, 6, 4, 2)),
    "skip_function._depthwise_gelu_cuda": (ops.depthwise_gelu, convolution),
    "skip_function._depthwise_gelu_backward_cuda": (
        ops.depthwise_gelu_backward,
        lambda: (drawn(2, 6, 4), *convolution()),
    ),
    "skip_function._channel_attention_cuda": (
        ops.channel_attention,
        lambda: (drawn(2, 1, 4), drawn(2, 5, 4), drawn(1, 1, 3), None),
    ),
    "skip_function._token_sums_cuda": (ops.token_sums, lambda: (drawn(2, 5, 4), drawn(2, 5, 4, seed=1))),
    "token_selection._class_row_cuda": (ops.class_row, lambda: (drawn(2, 3, 1, 8), drawn(2, 3, 9, 8), 0.3)),
    "token_selection._ranked_cuda": (ops.ranked, lambda: (drawn(2, 9), 1)),
    "token_selection._taken_apart_cuda": (ops.taken_apart, moved),
    "token_selection._put_back_cuda": (ops.put_back, moved),
    "low_rank_linear._low_rank_linear_on_gpu": (ops.low_rank_linear, shared_map),
    "normed_selection._taken_apart_normed_cuda": (ops.taken_apart_normed, normed),
    "normed_selection._gradients_cuda": (ops.taken_apart_normed_backward, normed_backward),
}


def tensors(found: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [found] if isinstance(found, Tensor) else list(found)


@pytest.mark.parametrize("name", CALLS)
def test_where_no_kernel_serves_the_op_is_its_plain_form(name: str) -> None:
    module, function = name.split(".")
    on_gpu = getattr(importlib.import_module(f"vitslim.kernels.{module}"), function)
    op, operands = CALLS[name]
    for found, expected in zip(tensors(on_gpu(*operands())), tensors(op(*operands())), strict=True):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
