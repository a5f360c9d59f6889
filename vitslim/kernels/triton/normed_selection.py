"""Triton kernels that take tokens apart with the LayerNorm of the first part on the way, and the gradient of that.

A row is whole in registers, so mean and variance cost no more reading. DeiT-S, batch 256, 224 px, bf16 on an H100
(``vitslim.kernels.triton.token_selection`` has the mark), in passes over the tokens of 11.5 µs:

* Forward: read all, write all, write the norm of the active half, 2.5 passes and one launch; a norm behind would read
  the active half again, 3 passes and two launches.
* Backward: read two gradients and the tokens of the active half, the gradient of the inactive, write all: 3 passes.
  The norm's gradient, the sum at the residual and the move, each on its own, are 5. Mean and variance are computed
  again from the row, which has to be read anyhow.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitslim.kernels.triton.compiling import KernelForm
from vitslim.kernels.triton.launching import PROGRAMS, launch, on_device_of, rows_of
from vitslim.kernels.triton.token_selection import read_parts, write_parts

_FORMS = (("bf16", "bf16", 384), ("bf16", "fp32", 384), ("fp16", "fp16", 1024), ("fp32", "fp32", 4096))
"""Types of the tokens and of the norm, and the width."""


@triton.jit
@no_type_check
def standardised(rows, width, eps, feature):
    """(x - μ) / σ of each row, and 1 / σ; zeros behind the width."""
    # The variance in a second pass over the registers: a difference of squares would cancel.
    mean = tl.sum(rows, axis=1) / width
    centred = tl.where((feature < width)[None, :], rows - mean[:, None], 0.0)
    inverse_deviation = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / width + eps)
    return centred * inverse_deviation[:, None], inverse_deviation


@triton.jit
@no_type_check
def take_norm_kernel(
    first,
    second,
    active,
    inactive,
    normed,
    indices,
    weight,
    bias,
    count,
    cut,
    ahead,
    width,
    eps,
    first_batch_stride,
    first_token_stride,
    second_batch_stride,
    second_token_stride,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Some rows of one image from (first, second) to (active, inactive), and LayerNorm of those that become active."""
    picture = tl.program_id(0).to(tl.int64)
    target = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    source = tl.load(indices + picture * count + target, mask=target < count, other=0).to(tl.int32)
    feature = tl.arange(0, BLOCK_D)
    inside = (target < count)[:, None] & (feature < width)[None, :]
    first_strides, second_strides = (first_batch_stride, first_token_stride), (second_batch_stride, second_token_stride)
    row = read_parts(first, second, first_strides, second_strides, picture, source, cut, feature, inside)
    write_parts(active, inactive, row, picture, target, ahead, count, width, feature, inside)
    # y = γ (x - μ) / σ + β
    values, _ = standardised(tl.where(inside, row.to(tl.float32), 0.0), width, eps, feature)
    scale = tl.load(weight + feature, mask=feature < width, other=0.0).to(tl.float32)
    shift = tl.load(bias + feature, mask=feature < width, other=0.0).to(tl.float32)
    values = values * scale[None, :] + shift[None, :]
    write = normed + (picture * ahead + target)[:, None] * width + feature[None, :]
    tl.store(write, values.to(normed.dtype.element_ty), mask=inside & (target < ahead)[:, None])


@triton.jit
@no_type_check
def take_norm_gradient_kernel(
    active_grad,
    inactive_grad,
    normed_grad,
    active,
    indices,
    weight,
    first_grad,
    second_grad,
    weight_parts,
    bias_parts,
    rows,
    count,
    cut,
    ahead,
    width,
    eps,
    rows_per_program,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The gradient of some rows of the batch, back at their indices, and those rows' share of that of γ and β."""
    feature = tl.arange(0, BLOCK_D)
    scale = tl.load(weight + feature, mask=feature < width, other=0.0).to(tl.float32)
    by_scale = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    by_shift = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    begin = tl.program_id(0) * rows_per_program
    end = tl.minimum(begin + rows_per_program, rows)
    for start in range(begin, end, BLOCK_N):
        row = start + tl.arange(0, BLOCK_N)
        picture, place = (row // count).to(tl.int64), row % count
        inside = (row < end)[:, None] & (feature < width)[None, :]
        is_active = inside & (place < ahead)[:, None]
        read = (picture * ahead + place)[:, None] * width + feature[None, :]
        values, inverse_deviation = standardised(
            tl.load(active + read, mask=is_active, other=0.0).to(tl.float32), width, eps, feature
        )
        gained = tl.load(normed_grad + read, mask=is_active, other=0.0).to(tl.float32)
        by_scale += gained * values
        by_shift += gained
        # g = γ dy;  dx = (g - mean g - x̂ mean(g x̂)) / σ
        gained *= scale[None, :]
        along = tl.sum(gained * values, axis=1) / width
        gained -= (tl.sum(gained, axis=1) / width)[:, None] + values * along[:, None]
        strides, inactive_strides = (ahead * width, width), ((count - ahead) * width, width)
        passed = read_parts(
            active_grad, inactive_grad, strides, inactive_strides, picture, place, ahead, feature, inside
        ).to(tl.float32)
        passed += tl.where(is_active, gained * inverse_deviation[:, None], 0.0)
        source = tl.load(indices + row, mask=row < end, other=0).to(tl.int32)
        passed = passed.to(first_grad.dtype.element_ty)
        write_parts(first_grad, second_grad, passed, picture, source, cut, count, width, feature, inside)
    write = tl.program_id(0) * width + feature
    tl.store(weight_parts + write, tl.sum(by_scale, axis=0), mask=feature < width)
    tl.store(bias_parts + write, tl.sum(by_shift, axis=0), mask=feature < width)


def gather_split_normed(
    first: Tensor, second: Tensor, indices: Tensor, ahead: int, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``vitslim::gather_split_normed``, see ``vitslim.kernels.normed_selection``."""
    first, second = (rows_of(part) for part in (first, second))
    images, count = indices.shape
    width = first.shape[2]
    active, inactive = first.new_empty(images, ahead, width), first.new_empty(images, count - ahead, width)
    normed = weight.new_empty(active.shape)
    sizes, options = block_sizes(width)
    with on_device_of(first):
        launch(
            take_norm_kernel,
            (images, triton.cdiv(count, sizes["BLOCK_N"])),
            first,
            second,
            active,
            inactive,
            normed,
            indices.contiguous(),
            weight.contiguous(),
            bias.contiguous(),
            count,
            first.shape[1],
            ahead,
            width,
            eps,
            first.stride(0),
            first.stride(1),
            second.stride(0),
            second.stride(1),
            **sizes,
            **options,
        )
    return active, inactive, normed


def gradients(
    active_grad: Tensor,
    inactive_grad: Tensor,
    normed_grad: Tensor,
    active: Tensor,
    indices: Tensor,
    weight: Tensor,
    eps: float,
    cut: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``vitslim::gather_split_normed_backward``. The sums over programs are torch's, in a fixed order."""
    images, count = indices.shape
    ahead, width = active.shape[1:]
    first_grad, second_grad = active.new_empty(images, cut, width), active.new_empty(images, count - cut, width)
    sizes, options = block_sizes(width)
    rows, block_n = images * count, sizes["BLOCK_N"]
    # At least one, which writes zeros where there is no row.
    programs = max(1, min(PROGRAMS, triton.cdiv(rows, block_n)))
    weight_parts, bias_parts = (active.new_empty(programs, width, dtype=torch.float32) for _ in range(2))
    with on_device_of(active):
        launch(
            take_norm_gradient_kernel,
            programs,
            active_grad.contiguous(),
            inactive_grad.contiguous(),
            normed_grad.contiguous(),
            active,
            indices.contiguous(),
            weight.contiguous(),
            first_grad,
            second_grad,
            weight_parts,
            bias_parts,
            rows,
            count,
            cut,
            ahead,
            width,
            eps,
            triton.cdiv(triton.cdiv(rows, programs), block_n) * block_n,
            **sizes,
            **options,
        )
    weight_grad, bias_grad = (parts.sum(dim=0).to(weight.dtype) for parts in (weight_parts, bias_parts))
    return first_grad, second_grad, weight_grad, bias_grad


def block_sizes(width: int) -> tuple[dict[str, int], dict[str, int]]:
    """Rows and features that a program holds, about 16 numbers of each operand to a thread, and its launch options."""
    block_d = triton.next_power_of_2(width)
    return {"BLOCK_N": max(1, 2048 // block_d), "BLOCK_D": block_d}, {"num_warps": max(4, block_d // 512)}


def forms() -> list[KernelForm]:
    """Both kernels for DeiT-S, ViT-L and the widest row."""
    found: list[KernelForm] = []
    for dtype, norm, width in _FORMS:
        sizes, options = block_sizes(width)
        name = f"{dtype}, norm in {norm}, width {width}"
        rows = dict.fromkeys(("first", "second", "active", "inactive"), f"*{dtype}")
        rows |= dict.fromkeys(("normed", "weight", "bias"), f"*{norm}") | {"indices": "*i64"}
        strides = ("first_batch_stride", "first_token_stride", "second_batch_stride", "second_token_stride")
        counts = dict.fromkeys(("count", "cut", "ahead", "width"), "i32") | {"eps": "fp32"}
        types = rows | counts | dict.fromkeys(strides, "i32")
        aligned, warps = (*rows, *strides, "width"), options["num_warps"]
        found.append(KernelForm(f"take_norm_kernel {name}", take_norm_kernel, types, sizes, aligned, warps))
        rows = dict.fromkeys(("active_grad", "inactive_grad", "active", "first_grad", "second_grad"), f"*{dtype}")
        rows |= dict.fromkeys(("normed_grad", "weight"), f"*{norm}") | {"indices": "*i64"}
        rows |= dict.fromkeys(("weight_parts", "bias_parts"), "*fp32")
        types = rows | counts | dict.fromkeys(("rows", "rows_per_program"), "i32")
        name, aligned = f"take_norm_gradient_kernel {name}", (*rows, "width")
        found.append(KernelForm(name, take_norm_gradient_kernel, types, sizes, aligned, warps))
    return found
