"""The parts of SkipAt's Φ between and behind its two linear maps.

Each has a plain form in torch's operators, which files and CPUs get, and a torch custom op with Triton kernels for
NVIDIA GPUs (``vitslim.kernels.triton``), forward and backward. The op on a CPU is the plain form.

Source: Venkataramanan et al. 2024, arXiv 2301.02240; channel attention of Wang et al. 2020, arXiv 1910.03151.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.kernels.serving import kernels_serve
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


def channel_attention(
    front: Float[Tensor, "b f d"],
    reduced: Float[Tensor, "b p d"],
    kernel: Float[Tensor, "1 1 3"],
    residual: Float[Tensor, "b p d"] | None,
) -> Float[Tensor, "b f+p d"]:
    """[front ; reduced · s (+ residual)] with one factor s, 0..1, per image and channel.

    Args:
        front: rows that pass unchanged, perhaps none.
        reduced: what the factors are found from and applied to.
        kernel: of the convolution over channels.
    """
    if _joins_by_kernel(front, reduced, residual):
        return torch.ops.vitslim.channel_attention(front, reduced, kernel, residual)[0]
    scale = channel_scale(reduced, kernel)
    scaled = reduced * scale if residual is None else torch.addcmul(residual, reduced, scale)
    return torch.cat([front, scaled], dim=1) if front.shape[1] else scaled


def channel_scale(reduced: Float[Tensor, "b p d"], kernel: Float[Tensor, "1 1 3"]) -> Float[Tensor, "b 1 d"]:
    """Efficient channel attention: one factor 0..1 per channel."""
    # s = σ(Conv1d(mean over tokens))
    return F.conv1d(reduced.mean(dim=1, keepdim=True), kernel, padding=1).sigmoid()


def plain_depthwise_gelu(patches: Tensor, weight: Tensor, bias: Tensor, rows: Count, columns: Count) -> Tensor:
    """``vitslim::depthwise_gelu`` in torch's own operators, for patches alone."""
    # The GELU reads tokens: contiguous memory takes torch's CPU kernel a third of the time of a channels-last image.
    return F.gelu(_tokens(_convolved(_image(patches, rows, columns), weight, bias)))


def plain_channel_attention(
    front: Tensor, reduced: Tensor, kernel: Tensor, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    """``vitslim::channel_attention`` in torch's own operators: what is written, and the mean over tokens in float32."""
    mean = reduced.mean(dim=1, dtype=_summed_in(reduced))
    scaled = reduced * _scale(mean, kernel).to(reduced.dtype).unsqueeze(1)
    return torch.cat([front, scaled if residual is None else residual + scaled], dim=1), mean


def _image(patches: Float[Tensor, "b p c"], rows: Count, columns: Count) -> Float[Tensor, "b c h w"]:
    # A view in channels-last order, which the CPU's convolution reads and writes as it lies. Written as transpose and
    # unflatten, a single image would have strides that look like channels first, and be copied.
    return patches.unflatten(1, (rows, columns)).permute(0, 3, 1, 2)


def _tokens(image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b p c"]:
    return image.permute(0, 2, 3, 1).flatten(1, 2)


def _convolved(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(image, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])


def _convolves_by_kernel(tokens: Tensor, weight: Tensor) -> bool:
    return kernels_serve(tokens) and weight.shape[-1] <= LARGEST_KERNEL


def _joins_by_kernel(front: Tensor, reduced: Tensor, residual: Tensor | None) -> bool:
    alike = front.dtype == reduced.dtype and (residual is None or residual.dtype == reduced.dtype)
    return alike and kernels_serve(reduced)


def _summed_in(tokens: Tensor) -> torch.dtype:
    return torch.promote_types(tokens.dtype, torch.float32)


def _scale(mean: Float[Tensor, "b d"], kernel: Float[Tensor, "1 1 3"]) -> Float[Tensor, "b d"]:
    # Three products, where cuDNN's convolution would round them to TF32.
    return (_neighbours(mean) * kernel.to(mean.dtype)).sum(dim=2).sigmoid()


def _neighbours(means: Float[Tensor, "b d"]) -> Float[Tensor, "b d 3"]:
    """Of each channel the one before, itself and the one behind."""
    return F.pad(means, (1, 1)).unfold(1, 3, 1)


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


_channel_attention = torch.library.custom_op("vitslim::channel_attention", plain_channel_attention, mutates_args=())


@_channel_attention.register_kernel("cuda")
def _channel_attention_cuda(
    front: Tensor, reduced: Tensor, kernel: Tensor, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    if not _joins_by_kernel(front, reduced, residual):
        return plain_channel_attention(front, reduced, kernel, residual)
    from vitslim.kernels.triton import channel_attention as kernels

    return kernels.channel_attention(front, reduced, kernel, residual)


@_channel_attention.register_fake
def _channel_attention_shape(
    front: Tensor, reduced: Tensor, kernel: Tensor, residual: Tensor | None
) -> tuple[Tensor, Tensor]:
    images, patches, width = reduced.shape
    mean = reduced.new_empty(images, width, dtype=_summed_in(reduced))
    return reduced.new_empty(images, front.shape[1] + patches, width), mean


def _plain_token_sums(first: Tensor, second: Tensor) -> Tensor:
    return (first.to(_summed_in(first)) * second).sum(dim=1)


_token_sums = torch.library.custom_op("vitslim::token_sums", _plain_token_sums, mutates_args=())


@_token_sums.register_kernel("cuda")
def _token_sums_cuda(first: Tensor, second: Tensor) -> Tensor:
    if not kernels_serve(first):
        return _plain_token_sums(first, second)
    from vitslim.kernels.triton import channel_attention as kernels

    return kernels.token_sums(first, second).sum(dim=1)


@_token_sums.register_fake
def _token_sums_shape(first: Tensor, second: Tensor) -> Tensor:
    return first.new_empty(first.shape[0], first.shape[2], dtype=_summed_in(first))


def _remember_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, reduced, kernel, residual = inputs
    ctx.has_residual = residual is not None
    ctx.save_for_backward(reduced, kernel, output[1])
    ctx.mark_non_differentiable(output[1])


def _attention_gradient(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    reduced, kernel, mean = ctx.saved_tensors
    front_rows = grad.shape[1] - reduced.shape[1]
    patches = grad[:, front_rows:]
    scale = _scale(mean, kernel)
    # ds = Σ_tokens dz · r;  s = σ(t):  dt = ds s (1 - s)
    drive = torch.ops.vitslim.token_sums(patches, reduced) * scale * (1.0 - scale)
    # t_c = w₀ m_{c-1} + w₁ m_c + w₂ m_{c+1}:  dw_j = Σ dt_c m_{c+j-1};  dm_c = w₀ dt_{c+1} + w₁ dt_c + w₂ dt_{c-1}
    grad_kernel = (drive.unsqueeze(2) * _neighbours(mean)).sum(dim=(0, 1)).view_as(kernel).to(kernel.dtype)
    grad_mean = (_neighbours(drive) * kernel.to(drive.dtype).flip(2)).sum(dim=2)
    share = (grad_mean / reduced.shape[1]).to(reduced.dtype).unsqueeze(1)
    grad_reduced = torch.addcmul(share, patches, scale.unsqueeze(1).to(reduced.dtype))
    return grad[:, :front_rows], grad_reduced, grad_kernel, patches if ctx.has_residual else None


_channel_attention.register_autograd(_attention_gradient, setup_context=_remember_attention)
