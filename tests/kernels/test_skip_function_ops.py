"""The torch op of SkipAt's Φ: what torch asks of a custom op, and that numbers stay the same through it."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.counting import Counting
from vitslim.errors import ConfigError
from vitslim.kernels import skip_function
from vitslim.kernels.skip_function import channel_scale, depthwise_gelu

ops = torch.ops.vitslim


def noise(*shape: int, seed: int = 0, **options: Any) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(options.pop("dtype", torch.float64)).requires_grad_(options.pop("grad", False))


def convolution(prefix: int, grad: bool = False, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    tokens = noise(2, prefix + 6, 4, grad=grad, dtype=dtype)
    return tokens, noise(4, 1, 3, 3, seed=1, grad=grad, dtype=dtype), noise(4, seed=2, grad=grad, dtype=dtype), 2, 3


@pytest.fixture
def through_the_op(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the op on a CPU too, where it computes the plain form."""
    monkeypatch.setattr(skip_function, "use_triton", lambda *_: True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_shifts_are_a_convolution_over_the_channels(dtype: torch.dtype) -> None:
    reduced, kernel = noise(2, 5, 7, dtype=dtype), noise(1, 1, 3, seed=2, dtype=dtype)
    expected = F.conv1d(reduced.mean(dim=1, keepdim=True), kernel, padding=1).sigmoid()
    # bfloat16 rounds each of the three products.
    tolerance = {"atol": 1e-2, "rtol": 1e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(channel_scale(reduced, kernel), expected, **tolerance)


@pytest.mark.parametrize("prefix", [0, 2])
def test_gradients_of_the_convolution_are_those_of_differences(prefix: int) -> None:
    assert torch.autograd.gradcheck(ops.depthwise_gelu, convolution(prefix, grad=True))


def test_through_the_op_numbers_and_gradients_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def results() -> list[Tensor]:
        tokens, weight, bias, *grid = convolution(2, grad=True)
        hidden = depthwise_gelu(tokens, weight, bias, (grid[0], grid[1]), prefix=2)
        loss = (hidden * noise(*hidden.shape, seed=7)).sum()
        return [hidden, *torch.autograd.grad(loss, [tokens, weight, bias])]

    plain = results()
    monkeypatch.setattr(skip_function, "use_triton", lambda *_: True)
    for found, expected in zip(results(), plain, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_forward_under_autocast_has_its_gradient_outside() -> None:
    tokens, weight, bias, *grid = convolution(1, grad=True, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = ops.depthwise_gelu(tokens.to(torch.bfloat16), weight, bias, *grid)
    assert out.dtype == torch.bfloat16
    found = torch.autograd.grad(out.sum(), [tokens, weight, bias])
    exact = ops.depthwise_gelu(tokens.double(), weight.double(), bias.double(), *grid)
    for slope, expected in zip(found, torch.autograd.grad(exact.sum(), [tokens, weight, bias]), strict=True):
        torch.testing.assert_close(slope, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


@pytest.mark.usefixtures("through_the_op")
@pytest.mark.parametrize(("side", "called"), [(7, {"depthwise_gelu"}), (9, set())])
def test_large_kernels_are_left_to_torch(side: int, called: set[str]) -> None:
    tokens, weight, bias = noise(1, 9, 2), noise(2, 1, side, side, seed=1), noise(2, seed=2)
    image = tokens.transpose(1, 2).unflatten(2, (3, 3))
    expected = F.gelu(F.conv2d(image, weight, bias, padding=side // 2, groups=2)).flatten(2).transpose(1, 2)
    with Counting() as counting:
        torch.testing.assert_close(depthwise_gelu(tokens, weight, bias, (3, 3)), expected)
    assert counting.called == called


@pytest.mark.parametrize("by_kernel", [False, True])
@pytest.mark.parametrize("prefix", [0, 2])
def test_tokens_that_do_not_fill_the_grid_are_refused(
    by_kernel: bool, prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skip_function, "use_triton", lambda *_: by_kernel)
    tokens, weight, bias, *_ = convolution(1)
    with pytest.raises(ConfigError, match=f"7 tokens for a grid of 2 x 3 .* wanted {prefix + 6}"):
        depthwise_gelu(tokens, weight, bias, (2, 3), prefix)


@pytest.mark.compiled
@pytest.mark.usefixtures("through_the_op")
def test_the_op_is_one_graph_forward_and_backward() -> None:
    tokens, weight, bias, *_ = convolution(2, grad=True, dtype=torch.float32)

    def block(tokens: Tensor) -> Tensor:
        hidden = depthwise_gelu(tokens, weight, bias, (2, 3), prefix=2)
        return hidden * channel_scale(hidden, weight[:1, :, 0])

    block(tokens).square().sum().backward()
    expected = [part.grad for part in (tokens, weight, bias)]
    for part in (tokens, weight, bias):
        part.grad = None
    torch.compile(block, fullgraph=True, backend="aot_eager")(tokens).square().sum().backward()
    for part, gradient in zip((tokens, weight, bias), expected, strict=True):
        torch.testing.assert_close(part.grad, gradient)
