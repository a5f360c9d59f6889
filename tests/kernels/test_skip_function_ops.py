"""The torch ops of SkipAt's Φ: what torch asks of a custom op, and that models through them stay the same models."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.kernels.counting import Counting
from vitslim.errors import ConfigError
from vitslim.kernels import skip_function
from vitslim.kernels.skip_function import channel_attention, depthwise_gelu

ops = torch.ops.vitslim


def noise(*shape: int, seed: int = 0, **options: Any) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return drawn.to(options.pop("dtype", torch.float64)).requires_grad_(options.pop("grad", False))


def convolution(prefix: int, grad: bool = False, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    tokens = noise(2, prefix + 6, 4, grad=grad, dtype=dtype)
    return tokens, noise(4, 1, 3, 3, seed=1, grad=grad, dtype=dtype), noise(4, seed=2, grad=grad, dtype=dtype), 2, 3


def attention(residual: bool, grad: bool = False, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    parts = [noise(2, 1, 4, grad=grad, dtype=dtype), noise(2, 5, 4, seed=1, grad=grad, dtype=dtype)]
    added = noise(2, 5, 4, seed=3, grad=grad, dtype=dtype) if residual else None
    return *parts, noise(1, 1, 3, seed=2, grad=grad, dtype=dtype), added


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the ops on a CPU too, where they compute the plain forms."""
    monkeypatch.setattr(skip_function, "kernels_serve", lambda _: True)


@pytest.mark.parametrize("prefix", [0, 2])
def test_gradients_of_the_convolution_are_those_of_differences(prefix: int) -> None:
    assert torch.autograd.gradcheck(ops.depthwise_gelu, convolution(prefix, grad=True))


@pytest.mark.parametrize("residual", [False, True])
def test_gradients_of_the_channel_attention_are_those_of_differences(residual: bool) -> None:
    assert torch.autograd.gradcheck(lambda *given: ops.channel_attention(*given)[0], attention(residual, grad=True))


def test_through_the_ops_numbers_and_gradients_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def results() -> list[Tensor]:
        tokens, weight, bias, *grid = convolution(2, grad=True)
        front, kernel = noise(2, 1, 4, seed=5, grad=True), noise(1, 1, 3, seed=6, grad=True)
        hidden = depthwise_gelu(tokens, weight, bias, (grid[0], grid[1]), prefix=2)
        joined = channel_attention(front, hidden, kernel, tokens[:, 2:])
        loss = (joined * noise(*joined.shape, seed=7)).sum()
        return [joined, *torch.autograd.grad(loss, [tokens, weight, bias, front, kernel])]

    plain = results()
    monkeypatch.setattr(skip_function, "kernels_serve", lambda _: True)
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


@pytest.mark.usefixtures("served")
def test_parts_of_several_precisions_are_left_to_torch() -> None:
    front, reduced, kernel, _ = attention(False)
    joined = channel_attention(front.float(), reduced, kernel, None)
    assert joined.dtype == torch.float64


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(("side", "called"), [(7, {"depthwise_gelu"}), (9, set())])
def test_large_kernels_are_left_to_torch(side: int, called: set[str]) -> None:
    tokens, weight, bias = noise(1, 9, 2), noise(2, 1, side, side, seed=1), noise(2, seed=2)
    image = tokens.transpose(1, 2).unflatten(2, (3, 3))
    expected = F.gelu(F.conv2d(image, weight, bias, padding=side // 2, groups=2)).flatten(2).transpose(1, 2)
    with Counting() as counting:
        torch.testing.assert_close(depthwise_gelu(tokens, weight, bias, (3, 3)), expected)
    assert counting.called == called


@pytest.mark.parametrize("serves", [False, True])
@pytest.mark.parametrize("prefix", [0, 2])
def test_tokens_that_do_not_fill_the_grid_are_refused(
    serves: bool, prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skip_function, "kernels_serve", lambda _: serves)
    tokens, weight, bias, *_ = convolution(1)
    with pytest.raises(ConfigError, match=f"7 tokens for a grid of 2 x 3 .* wanted {prefix + 6}"):
        depthwise_gelu(tokens, weight, bias, (2, 3), prefix)


@pytest.mark.compiled
@pytest.mark.usefixtures("served")
def test_the_ops_are_one_graph_forward_and_backward() -> None:
    tokens, weight, bias, *_ = convolution(2, grad=True, dtype=torch.float32)
    kernel = noise(1, 1, 3, seed=6, grad=True, dtype=torch.float32)

    def block(tokens: Tensor) -> Tensor:
        hidden = depthwise_gelu(tokens, weight, bias, (2, 3), prefix=2)
        return channel_attention(tokens[:, :2], hidden, kernel, tokens[:, 2:])

    block(tokens).square().sum().backward()
    expected = [part.grad for part in (tokens, weight, bias, kernel)]
    for part in (tokens, weight, bias, kernel):
        part.grad = None
    torch.compile(block, fullgraph=True, backend="aot_eager")(tokens).square().sum().backward()
    for part, gradient in zip((tokens, weight, bias, kernel), expected, strict=True):
        torch.testing.assert_close(part.grad, gradient)
