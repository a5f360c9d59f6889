"""Triton kernels of the end of SkipAt's Φ: channel attention, the residual and the prefix rows in one pass.

In torch's operators the end of Φ is a mean over tokens, a convolution over channels, a sigmoid, a product, perhaps a
sum, and ``cat`` with the prefix rows: the tokens are read three to five times and written two or three times. Here they
are read twice and written once: ``token_sum_kernel`` sums, ``join_kernel`` finds the scales from the sums and writes
prefix and patches to where the residual add reads them.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitslim.kernels.triton.compiling import KernelForm
from vitslim.kernels.triton.launching import PROGRAMS, launch, on_device_of, rows_of


@triton.jit
@no_type_check
def token_sum_kernel(
    first,
    second,
    parts,
    count,
    channels,
    first_batch_stride,
    second_batch_stride,
    token_stride,
    second_token_stride,
    tokens_per_program,
    PRODUCT: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums over some tokens of one image, of the tokens or of their product with others."""
    segments = tl.num_programs(1)
    picture = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    begin = tl.program_id(1) * tokens_per_program
    end = tl.minimum(begin + tokens_per_program, count)
    summed = tl.zeros([BLOCK_T, BLOCK_C], tl.float32)
    for start in range(begin, end, BLOCK_T):
        token = start + tl.arange(0, BLOCK_T)
        mask = (token < end)[:, None] & (channel < channels)[None, :]
        read = first + picture * first_batch_stride + token[:, None] * token_stride + channel[None, :]
        part = tl.load(read, mask=mask, other=0.0).to(tl.float32)
        if PRODUCT:
            read = second + picture * second_batch_stride + token[:, None] * second_token_stride + channel[None, :]
            part *= tl.load(read, mask=mask, other=0.0).to(tl.float32)
        summed += part
    write = parts + (picture * segments + tl.program_id(1)) * channels + channel
    tl.store(write, tl.sum(summed, axis=0), mask=channel < channels)


@triton.jit
@no_type_check
def _mean_at(parts, channel, channels, segments, count):
    inside = (channel >= 0) & (channel < channels)
    summed = tl.load(parts + channel, mask=inside, other=0.0)
    for segment in range(1, segments):
        summed += tl.load(parts + segment * channels + channel, mask=inside, other=0.0)
    return summed / tl.maximum(count, 1)


@triton.jit
@no_type_check
def join_kernel(
    front,
    reduced,
    residual,
    parts,
    kernel,
    out,
    means,
    front_count,
    count,
    channels,
    segments,
    front_batch_stride,
    front_token_stride,
    reduced_batch_stride,
    residual_batch_stride,
    residual_token_stride,
    RESIDUAL: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """[front ; reduced · s (+ residual)] for some tokens of one image, s from the sums over its tokens."""
    picture = tl.program_id(0).to(tl.int64)
    token = tl.program_id(1) * BLOCK_T + tl.arange(0, BLOCK_T)
    channel = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (channel < channels)[None, :]
    parts += picture * segments * channels
    # s_c = σ(w₀ m_{c-1} + w₁ m_c + w₂ m_{c+1}), m the mean over tokens
    drive = tl.load(kernel).to(tl.float32) * _mean_at(parts, channel - 1, channels, segments, count)
    mean = _mean_at(parts, channel, channels, segments, count)
    drive += tl.load(kernel + 1).to(tl.float32) * mean
    drive += tl.load(kernel + 2).to(tl.float32) * _mean_at(parts, channel + 1, channels, segments, count)
    scale = 1.0 / (1.0 + tl.exp(-drive))
    # The first program of an image also writes its means, which the gradient reads.
    tl.store(means + picture * channels + channel, mean, mask=channel < tl.where(tl.program_id(1) == 0, channels, 0))
    patch = token - front_count
    is_patch = ((patch >= 0) & (patch < count))[:, None] & inside
    is_front = (token < front_count)[:, None] & inside
    read = reduced + picture * reduced_batch_stride + patch[:, None] * channels + channel[None, :]
    value = tl.load(read, mask=is_patch, other=0.0).to(tl.float32) * scale[None, :]
    if RESIDUAL:
        read = residual + picture * residual_batch_stride + patch[:, None] * residual_token_stride + channel[None, :]
        value += tl.load(read, mask=is_patch, other=0.0).to(tl.float32)
    read = front + picture * front_batch_stride + token[:, None] * front_token_stride + channel[None, :]
    value = tl.where(is_front, tl.load(read, mask=is_front, other=0.0).to(tl.float32), value)
    write = out + picture * (front_count + count) * channels + token[:, None] * channels + channel[None, :]
    tl.store(write, value.to(out.dtype.element_ty), mask=is_patch | is_front)


def channel_attention(front: Tensor, reduced: Tensor, kernel: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
    """``vitslim::channel_attention``: what is written, and the mean over tokens in float32."""
    reduced, front = reduced.contiguous(), rows_of(front)
    images, count, channels = reduced.shape
    parts = token_sums(reduced, None)
    out = reduced.new_empty(images, front.shape[1] + count, channels)
    means = parts.new_empty(images, channels)
    added = reduced if residual is None else rows_of(residual)
    block_t, block_c = 32, min(128, triton.next_power_of_2(channels))
    grid = (images, triton.cdiv(out.shape[1], block_t), triton.cdiv(channels, block_c))
    with on_device_of(reduced):
        launch(
            join_kernel,
            grid,
            front,
            reduced,
            added,
            parts,
            kernel.contiguous(),
            out,
            means,
            front.shape[1],
            count,
            channels,
            parts.shape[1],
            front.stride(0),
            front.stride(1),
            reduced.stride(0),
            added.stride(0),
            added.stride(1),
            RESIDUAL=residual is not None,
            BLOCK_T=block_t,
            BLOCK_C=block_c,
        )
    return out, means


def token_sums(first: Tensor, second: Tensor | None) -> Tensor:
    """Sums over tokens of (b, n, c), or of the product of two, as (b, segments, c) parts in float32."""
    first = rows_of(first)
    other = first if second is None else rows_of(second)
    images, count, channels = first.shape
    block_t, block_c = 16, min(64, triton.next_power_of_2(channels))
    across = triton.cdiv(channels, block_c)
    segments = max(1, min(triton.cdiv(count, 4 * block_t), PROGRAMS // max(1, images * across)))
    parts = first.new_empty(images, segments, channels, dtype=torch.float32)
    with on_device_of(first):
        launch(
            token_sum_kernel,
            (images, segments, across),
            first,
            other,
            parts,
            count,
            channels,
            first.stride(0),
            other.stride(0),
            first.stride(1),
            other.stride(1),
            triton.cdiv(count, segments),
            PRODUCT=second is not None,
            BLOCK_T=block_t,
            BLOCK_C=block_c,
        )
    return parts


def forms() -> list[KernelForm]:
    """Both kernels in both forms, as DeiT-S wants them."""
    found: list[KernelForm] = []
    for dtype, more in (("bf16", False), ("fp16", True), ("fp32", True)):
        pointers = {"first": f"*{dtype}", "second": f"*{dtype}", "parts": "*fp32"}
        strides = ("first_batch_stride", "second_batch_stride", "token_stride", "second_token_stride")
        sizes = dict.fromkeys((*strides, "count", "channels", "tokens_per_program"), "i32")
        constants = {"PRODUCT": more, "BLOCK_T": 16, "BLOCK_C": 64}
        aligned = (*pointers, *strides, "channels")
        found.append(KernelForm(f"token_sum_kernel {dtype}", token_sum_kernel, pointers | sizes, constants, aligned))
        pointers = dict.fromkeys(("front", "reduced", "residual", "kernel", "out"), f"*{dtype}") | {
            "parts": "*fp32",
            "means": "*fp32",
        }
        strides = ("front_batch_stride", "front_token_stride", "reduced_batch_stride")
        strides += ("residual_batch_stride", "residual_token_stride")
        sizes = dict.fromkeys((*strides, "front_count", "count", "channels", "segments"), "i32")
        constants = {"RESIDUAL": more, "BLOCK_T": 32, "BLOCK_C": 128}
        aligned = (*pointers, *strides, "channels")
        found.append(KernelForm(f"join_kernel {dtype}", join_kernel, pointers | sizes, constants, aligned))
    return found
