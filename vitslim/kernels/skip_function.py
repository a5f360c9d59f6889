"""The parts of SkipAt's Φ between and behind its two linear maps.

The convolution has a plain form in torch's operators, which files and CPUs get, and a torch custom op with Triton
kernels for NVIDIA GPUs (``vitslim.kernels.triton``), forward and backward. The op on a CPU is the plain form. The
channel attention has none: of what is left of it Inductor makes the two passes that a kernel would make.

Source: Venkataramanan et al. 2024, arXiv 2301.02240; channel attention of Wang et al. 2020, arXiv 1910.03151.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.kernels.dispatch import use_triton
from vitslim.shapes import Count

LARGEST_KERNEL = 7
"""The Triton kernel writes every tap of a convolution out; larger ones are left to torch."""


def depthwise_gelu(
    tokens: Float[Tensor, "b n c"],
    weight: Float[Tensor, "c 1 k k"],
    bias: Float[Tensor, " c"],
    grid: tuple[Count, Count],
    prefix: int = 0,
) -> Float[Tensor, "b p c"]:
    """GELU of a depthwise convolution over the patch grid, which zeros surround; the grid keeps its size.

    Args:
        tokens: the patches, row by row, behind ``prefix`` rows that are left out.
        weight: one odd square kernel per channel.
        grid: rows and columns of patches.

    Raises:
        ConfigError: ``tokens`` are not the prefix and as many patches as the grid has.
    """
    if tokens.shape[1] != prefix + grid[0] * grid[1]:
        raise ConfigError(
            f"{tokens.shape[1]} tokens for a grid of {grid[0]} x {grid[1]} patches behind a prefix of {prefix}; "
            f"wanted {prefix + grid[0] * grid[1]}"
        )
    if _convolves_by_kernel(tokens, weight):
        return torch.ops.vitslim.depthwise_gelu(tokens, weight, bias, *grid)
    return plain_depthwise_gelu(tokens[:, prefix:] if prefix else tokens, weight, bias, *grid)


def channel_scale(reduced: Float[Tensor, "b p d"], kernel: Float[Tensor, "1 1 3"]) -> Float[Tensor, "b 1 d"]:
    """Efficient channel attention: one factor 0..1 per channel."""
    means, (left, middle, right) = reduced.mean(dim=1, keepdim=True), kernel.flatten()
    padded = F.pad(means, (1, 1))
    # s = σ(t),  t_c = w₀ m_{c-1} + w₁ m_c + w₂ m_{c+1}; as shifts, which Inductor joins with what stands around them
    return (left * padded[..., :-2] + middle * means + right * padded[..., 2:]).sigmoid()


def plain_depthwise_gelu(patches: Tensor, weight: Tensor, bias: Tensor, rows: Count, columns: Count) -> Tensor:
    """``vitslim::depthwise_gelu`` in torch's own operators, for patches alone."""
    # The GELU reads tokens: contiguous memory takes torch's CPU kernel a third of the time of a channels-last image.
    return F.gelu(_tokens(_convolved(_image(patches, rows, columns), weight, bias)))


def _image(patches: Float[Tensor, "b p c"], rows: Count, columns: Count) -> Float[Tensor, "b c h w"]:
    # A view in channels-last order, which the CPU's convolution reads and writes as it lies. Written as transpose and
    # unflatten, a single image would have strides that look like channels first, and be copied.
    return patches.unflatten(1, (rows, columns)).permute(0, 3, 1, 2)


def _tokens(image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b p c"]:
    return image.permute(0, 2, 3, 1).flatten(1, 2)


def _convolved(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(image, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])


def _convolves_by_kernel(tokens: Tensor, weight: Tensor) -> bool:
    return weight.shape[-1] <= LARGEST_KERNEL and use_triton(tokens, "skip_function", tokens.shape[1])


def _patches(tokens: Tensor, rows: int, columns: int) -> Tensor:
    return tokens[:, tokens.shape[1] - rows * columns :]


def _plain_convolution(tokens: Tensor, weight: Tensor, bias: Tensor, rows: int, columns: int) -> Tensor:
    # As in the kernels, the tokens' precision is that of the result, autocast or not.
    weight, bias = weight.to(tokens.dtype), bias.to(tokens.dtype)
    with torch.autocast(tokens.device.type, enabled=False):
        return plain_depthwise_gelu(_patches(tokens, rows, columns), weight, bias, rows, columns).contiguous()


_depthwise_gelu = torch.library.custom_op("vitslim::depthwise_gelu", _plain_convolution, mutates_args=())


@_depthwise_gelu.register_kernel("cuda")
def _depthwise_gelu_cuda(tokens: Tensor, weight: Tensor, bias: Tensor, rows: int, columns: int) -> Tensor:
    if not _convolves_by_kernel(tokens, weight):
        return _plain_convolution(tokens, weight, bias, rows, columns)
    from vitslim.kernels.triton import skip_function

    return skip_function.depthwise_gelu(tokens, weight, bias, rows, columns)


@_depthwise_gelu.register_fake
def _depthwise_gelu_shape(tokens: Tensor, weight: Tensor, bias: Tensor, rows: int, columns: int) -> Tensor:
    return tokens.new_empty(tokens.shape[0], rows * columns, tokens.shape[2])


def _plain_convolution_backward(
    grad: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor, rows: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    prefix, reach, channels = tokens.shape[1] - rows * columns, weight.shape[-1] // 2, weight.shape[0]
    image, above = _image(_patches(tokens, rows, columns), rows, columns), _image(grad, rows, columns)
    # dL/du = dL/dy · GELU'(u) for u, the convolution
    taps, shift = weight.to(tokens.dtype), bias.to(tokens.dtype)
    with torch.autocast(tokens.device.type, enabled=False):
        slope = torch.ops.aten.gelu_backward(above, _convolved(image, taps, shift))
    spread, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        slope, image, taps, [channels], [1, 1], [reach] * 2, [1, 1], False, [0, 0], channels, [True] * 3
    )
    grad_tokens = F.pad(_tokens(spread), (0, 0, prefix, 0))
    return grad_tokens.contiguous(), grad_weight.to(weight.dtype).contiguous(), grad_bias.to(bias.dtype)


_depthwise_gelu_backward = torch.library.custom_op(
    "vitslim::depthwise_gelu_backward", _plain_convolution_backward, mutates_args=()
)


@_depthwise_gelu_backward.register_kernel("cuda")
def _depthwise_gelu_backward_cuda(
    grad: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor, rows: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    if not _convolves_by_kernel(tokens, weight):
        return _plain_convolution_backward(grad, tokens, weight, bias, rows, columns)
    from vitslim.kernels.triton import skip_function

    return skip_function.depthwise_gelu_backward(grad, tokens, weight, bias, rows, columns)


@_depthwise_gelu_backward.register_fake
def _depthwise_gelu_backward_shape(
    grad: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor, rows: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    return tokens.new_empty(tokens.shape), weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _remember_convolution(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.rows, ctx.columns = inputs
    ctx.save_for_backward(*tensors)


def _convolution_gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    slopes = torch.ops.vitslim.depthwise_gelu_backward(grad, *ctx.saved_tensors, ctx.rows, ctx.columns)
    return *slopes, None, None


_depthwise_gelu.register_autograd(_convolution_gradient, setup_context=_remember_convolution)
