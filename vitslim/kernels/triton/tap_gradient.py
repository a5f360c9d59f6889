"""The Triton kernel of the gradient of a depthwise convolution's weights, in token layout."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitslim.kernels.triton.compiling import KernelForm
from vitslim.kernels.triton.launching import PROGRAMS, launch, on_device_of


@triton.jit
@no_type_check
def tap_gradient_kernel(
    tokens,
    upstream,
    weight_parts,
    bias_parts,
    images,
    rows,
    columns,
    channels,
    tokens_batch_stride,
    token_stride,
    places_per_program,
    KERNEL: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The gradient of kernel and bias over some places of the batch, for some channels.

    All taps are held at once, [taps, channels]; a step of the loop adds one place. The sums over programs are torch's,
    in a fixed order, so that training is repeatable.
    """
    reach: tl.constexpr = KERNEL // 2
    taps: tl.constexpr = KERNEL * KERNEL
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    tap = tl.arange(0, TAPS)
    down, right = tap // KERNEL - reach, tap % KERNEL - reach
    by_tap = tl.zeros([TAPS, BLOCK_C], tl.float32)
    by_channel = tl.zeros([BLOCK_C], tl.float32)
    patches = rows * columns
    first = tl.program_id(0) * places_per_program
    last = tl.minimum(first + places_per_program, images * patches)
    for place in range(first, last):
        picture, patch = (place // patches).to(tl.int64), place % patches
        row, column = patch // columns + down, patch % columns + right
        seen = (tap < taps) & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        read = tokens + picture * tokens_batch_stride + (row * columns + column)[:, None] * token_stride
        part = tl.load(read + channel[None, :], mask=seen[:, None] & inside[None, :], other=0.0).to(tl.float32)
        above = upstream + (picture * patches + patch) * channels
        gained = tl.load(above + channel, mask=inside, other=0.0).to(tl.float32)
        by_tap += part * gained[None, :]
        by_channel += gained
    sums = weight_parts + (tl.program_id(0) * channels + channel)[None, :] * taps + tap[:, None]
    tl.store(sums, by_tap, mask=(tap < taps)[:, None] & inside[None, :])
    tl.store(bias_parts + tl.program_id(0) * channels + channel, by_channel, mask=inside)


def tap_gradients(
    patches: Tensor, upstream: Tensor, weight: Tensor, bias: Tensor, grid: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The gradients of kernel and bias, from the patches and what enters the convolution from above."""
    images, count, channels = patches.shape
    taps = weight.shape[-1] ** 2
    block_c = 64 if taps <= 32 else 32
    deep = triton.cdiv(channels, block_c)
    # At least one, which writes zeros where there is no place.
    programs = max(1, min(images * count, PROGRAMS // deep))
    weight_parts = weight.new_empty(programs, channels, taps, dtype=torch.float32)
    bias_parts = weight.new_empty(programs, channels, dtype=torch.float32)
    with on_device_of(patches):
        launch(
            tap_gradient_kernel,
            (programs, deep),
            patches,
            upstream,
            weight_parts,
            bias_parts,
            images,
            *grid,
            channels,
            patches.stride(0),
            patches.stride(1),
            triton.cdiv(images * count, programs),
            KERNEL=weight.shape[-1],
            TAPS=triton.next_power_of_2(taps),
            BLOCK_C=block_c,
        )
    return weight_parts.sum(dim=0).view_as(weight).to(weight.dtype), bias_parts.sum(dim=0).to(bias.dtype)


def forms() -> list[KernelForm]:
    """As DeiT-S wants it, and in float32."""
    sizes = ("images", "rows", "columns", "channels", "tokens_batch_stride", "token_stride", "places_per_program")
    found: list[KernelForm] = []
    for dtype in ("bf16", "fp32"):
        pointers = {"tokens": f"*{dtype}", "upstream": f"*{dtype}", "weight_parts": "*fp32", "bias_parts": "*fp32"}
        types = pointers | dict.fromkeys(sizes, "i32")
        constants = {"KERNEL": 5, "TAPS": 32, "BLOCK_C": 64}
        found.append(
            KernelForm(
                f"tap_gradient_kernel {dtype}",
                tap_gradient_kernel,
                types,
                constants,
                dict.fromkeys((*pointers, *sizes[3:6]), 16),
            )
        )
    return found
