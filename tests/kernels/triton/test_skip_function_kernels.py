"""SkipAt's Triton kernels against float64: Triton's interpreter on a CPU, compiled on a GPU."""

import pytest
import torch
from torch import Tensor

from tests.kernels.triton.closeness import DEVICES, drawn, require_close, sizes_in_types
from vitslim.kernels.skip_function import plain_depthwise_gelu

pytest.importorskip("triton")
from vitslim.kernels.triton import skip_function

# (images, rows, columns, channels, kernel, prefix): an even and an odd grid, one higher than wide, one wider than a
# block; channels that fill no vector; a kernel larger than the grid.
SHAPES = [
    (2, 4, 4, 16, 5, 1),
    (1, 5, 3, 10, 3, 0),
    (1, 3, 17, 5, 5, 2),
    (1, 2, 2, 33, 7, 1),
    (1, 1, 9, 4, 1, 0),
]
# DeiT-S at 224 px in the paper's form, DINOv2-B at 518 px in the narrow one: too much for an interpreter.
LARGE = [(64, 14, 14, 768, 5, 1), (3, 37, 37, 384, 5, 5), (1, 14, 14, 192, 3, 1)]


def operands(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> tuple[list[Tensor], tuple[int, int]]:
    images, rows, columns, channels, kernel, prefix = shape
    tokens = drawn(images, prefix + rows * columns, channels, dtype=dtype, device=device)
    weight = drawn(channels, 1, kernel, kernel, dtype=dtype, device=device, seed=1, scale=0.5)
    return [tokens, weight, drawn(channels, dtype=dtype, device=device, seed=2)], (rows, columns)


def reference(tokens: Tensor, weight: Tensor, bias: Tensor, rows: int, columns: int) -> Tensor:
    return plain_depthwise_gelu(tokens[:, -rows * columns :], weight, bias, rows, columns)


@pytest.mark.parametrize(("shape", "dtype", "device"), sizes_in_types(SHAPES, LARGE))
def test_depthwise_gelu_forward_and_backward(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    tensors, grid = operands(shape, dtype, device)
    exact = [tensor.double().requires_grad_() for tensor in tensors]
    expected = reference(*exact, *grid)
    require_close(skip_function.depthwise_gelu(*tensors, *grid), expected)
    grad = drawn(*expected.shape, dtype=dtype, device=device, seed=3)
    slopes = skip_function.depthwise_gelu_backward(grad, *tensors, *grid)
    # dL/du is rounded before it is spread over the inputs and summed over the tokens.
    for found, wanted in zip(slopes, torch.autograd.grad(expected, exact, grad.double()), strict=True):
        require_close(found, wanted, roundings=4.0)


@pytest.mark.parametrize("device", DEVICES)
def test_rows_may_lie_apart_and_parameters_in_another_precision(device: str) -> None:
    (tokens, weight, bias), grid = operands((2, 4, 4, 16, 3, 3), torch.bfloat16, device)
    apart = drawn(2, 19, 40, dtype=torch.bfloat16, device=device)[:, :, 8:24].copy_(tokens)
    assert not apart.is_contiguous()
    wide = [weight.float() + 1e-4, bias.float() + 1e-4]
    expected = reference(tokens.double(), *(part.double() for part in wide), *grid)
    require_close(skip_function.depthwise_gelu(apart, *wide, *grid), expected)
    slopes = skip_function.depthwise_gelu_backward(expected.to(torch.bfloat16), apart, *wide, *grid)
    assert [slope.dtype for slope in slopes] == [torch.bfloat16, torch.float32, torch.float32]


@pytest.mark.parametrize("device", DEVICES)
def test_what_one_program_does_not_hold_others_do(device: str) -> None:
    # 3 strips of rows, 2 of columns, 2 of channels, none of them full.
    tensors, grid = operands((1, 5, 19, 40, 3, 1), torch.float32, device)
    expected = reference(*(tensor.double() for tensor in tensors), *grid)
    require_close(skip_function.depthwise_gelu(*tensors, *grid), expected)
