"""Triton kernels of the middle of SkipAt's Φ: depthwise convolution, bias and GELU in token layout.

Tokens lie as (b, n, c): a prefix that is left out, then the patches row by row, channels innermost. A convolution over
the patch grid needs no permute there: a tap is another row of the same matrix.

Where the first GELU belongs. Φ is Linear d→ed, GELU, convolution, GELU, Linear ed→d. The arithmetic for DeiT-S, e = 2,
batch 256, 224 px, bf16 on an H100 (3.35 TB/s, 132 SMs of 128 lanes at 1.76 GHz: 29.7 T lane operations/s): the hidden
tensor has 256 · 196 · 768 = 38.5 M entries, 77 MB; the product before it takes 49 µs at 600 TFLOP/s.

* In that product's epilogue it would be free, but cuBLAS has the tanh form alone, not the exact erf that pretrained
  models have, and a product of our own must not be half as slow again. ``torch.compile(mode="max-autotune")`` tries
  such products and keeps what is faster.
* A pass of its own reads and writes 2 · 77 MB: 46 µs.
* Recomputed where the convolution loads: 15 loads per entry (below) times about 25 operations of erf are 38.5 M · 375 /
  29.7 T = 490 µs.

So it stays torch's ``gelu`` behind torch's ``linear``. The second GELU is computed once per entry, in the convolution's
epilogue, and saves its pass of 46 µs.

The convolution itself reads and writes 77 MB, 46 µs at least. A program holds two rows of outputs, so that each entry
it loads serves both: (k + 1) k / 2 = 15 loads per output in place of 25 for k = 5. With 30 multiply-adds, 15
conversions and the erf these are about 70 lane operations, 90 µs: it is bound by arithmetic, not by memory. Torch's
permutes, bias and GELU beside the convolution would move another 300 MB, 90 µs. A program has two rows of 32 channels
of an image and no more: of 43,008 programs the last wave is a few percent, and the six rows that each of them loads,
three times the tensor, come from L2 in 42 µs (at an estimated 5.5 TB/s), behind the arithmetic. Not measured yet.
"""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitslim.kernels.triton.compiling import KernelForm
from vitslim.kernels.triton.launching import launch, on_device_of, rows_of
from vitslim.kernels.triton.tap_gradient import tap_gradients

_CHANNELS = 32  # of a program


@triton.jit
@no_type_check
def _two_rows(
    image,
    taps,
    y,
    x,
    channel,
    rows,
    columns,
    channels,
    token_stride,
    KERNEL: tl.constexpr,
    FLIPPED: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """The convolution at rows y and y + 1 of one image; what lies outside the grid is zero."""
    reach: tl.constexpr = KERNEL // 2
    last: tl.constexpr = KERNEL * KERNEL - 1
    inside = (channel < channels)[None, :]
    taps += channel
    upper = tl.zeros([BLOCK_X, BLOCK_C], tl.float32)
    lower = tl.zeros([BLOCK_X, BLOCK_C], tl.float32)
    # The loop over rows stays a loop: written out, all its loads are moved to the front and spill.
    for down in range(KERNEL + 1):
        row = y + down - reach
        # A row outside the grid has no columns, a row outside the kernel no channels.
        width = tl.where((row >= 0) & (row < rows), columns, 0)
        of_upper = channel < tl.where(down < KERNEL, channels, 0)
        of_lower = channel < tl.where(down > 0, channels, 0)
        for right in tl.static_range(KERNEL):
            column = x + right - reach
            seen = (column >= 0) & (column < width)
            place = image + (row * columns + column)[:, None] * token_stride + channel[None, :]
            part = tl.load(place, mask=seen[:, None] & inside, other=0.0).to(tl.float32)
            above = down * KERNEL + right
            below = above - KERNEL
            if FLIPPED:
                above, below = last - above, last - below
            upper += part * tl.load(taps + above * channels, mask=of_upper, other=0.0).to(tl.float32)[None, :]
            lower += part * tl.load(taps + below * channels, mask=of_lower, other=0.0).to(tl.float32)[None, :]
    return upper, lower


@triton.jit
@no_type_check
def _finish(summed, bias, upstream, out, place, channel, channels, mask, FORM: tl.constexpr):
    """Write one row of outputs: the GELU, its derivative times what comes from above, or the sums as they are."""
    if FORM != "spread":
        summed += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]
        # GELU(u) = u Φ(u) with the normal distribution Φ(u) = ½ (1 + erf(u / √2))
        below = 0.5 * (1.0 + tl.erf(summed * 0.7071067811865476))
        if FORM == "activate":
            summed = summed * below
        else:
            # GELU'(u) = Φ(u) + u φ(u),  φ(u) = exp(-u²/2) / √(2π)
            slope = below + summed * 0.3989422804014327 * tl.exp(-0.5 * summed * summed)
            summed = slope * tl.load(upstream + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, summed.to(out.dtype.element_ty), mask=mask)


@triton.jit
@no_type_check
def depthwise_kernel(
    tokens,
    taps,
    bias,
    upstream,
    out,
    rows,
    columns,
    channels,
    tokens_batch_stride,
    token_stride,
    out_batch_stride,
    KERNEL: tl.constexpr,
    FORM: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Two rows of one image, some columns, some channels.

    ``FORM`` says what is written. ``activate``: GELU of the convolution. ``pull_back``: ``upstream`` times the GELU's
    derivative there. ``spread``: the convolution with the kernel turned by 180°, without bias and GELU, which is the
    gradient of the convolution's input.
    """
    program = tl.program_id(0)
    across, strips = tl.cdiv(columns, BLOCK_X), tl.cdiv(rows, 2)
    x = (program % across) * BLOCK_X + tl.arange(0, BLOCK_X)
    y = 2 * ((program // across) % strips)
    picture = (program // across // strips).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    image = tokens + picture * tokens_batch_stride
    upper, lower = _two_rows(
        image,
        taps,
        y,
        x,
        channel,
        rows,
        columns,
        channels,
        token_stride,
        KERNEL,
        FORM == "spread",
        BLOCK_X,
        BLOCK_C,
    )
    place = picture * out_batch_stride + (y * columns + x)[:, None] * channels + channel[None, :]
    mask = (x < columns)[:, None] & (channel < channels)[None, :]
    _finish(upper, bias, upstream, out, place, channel, channels, mask, FORM)
    mask = (x < tl.where(y + 1 < rows, columns, 0))[:, None] & (channel < channels)[None, :]
    _finish(lower, bias, upstream, out, place + columns * channels, channel, channels, mask, FORM)


def depthwise_gelu(tokens: Tensor, weight: Tensor, bias: Tensor, rows: int, columns: int) -> Tensor:
    """``vitslim::depthwise_gelu``, see ``vitslim.kernels.skip_function``."""
    out = tokens.new_empty(tokens.shape[0], rows * columns, tokens.shape[2])
    _convolve(_patches(tokens, rows * columns), weight, bias, None, out, (rows, columns), "activate")
    return out


def depthwise_gelu_backward(
    grad: Tensor, tokens: Tensor, weight: Tensor, bias: Tensor, rows: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """``vitslim::depthwise_gelu_backward``: the gradients of tokens, kernel and bias.

    The convolution is computed again rather than kept: 90 µs of arithmetic at most, for a tensor as large as the
    hidden one in every skipped block.
    """
    patches, grad = _patches(tokens, rows * columns), grad.contiguous()
    # What enters the convolution from above: dL/du = dL/dy · GELU'(u)
    upstream = torch.empty_like(grad)
    _convolve(patches, weight, bias, grad, upstream, (rows, columns), "pull_back")
    grad_tokens = torch.empty_like(tokens, memory_format=torch.contiguous_format)
    prefix = tokens.shape[1] - rows * columns
    grad_tokens[:, :prefix] = 0.0
    _convolve(upstream, weight, bias, None, grad_tokens[:, prefix:], (rows, columns), "spread")
    return grad_tokens, *tap_gradients(patches, upstream, weight, bias, (rows, columns))


def forms() -> list[KernelForm]:
    """The kernels as DeiT-S wants them, and one with everything in float32."""
    strides = ("channels", "tokens_batch_stride", "token_stride", "out_batch_stride")
    sizes = dict.fromkeys((*strides, "rows", "columns"), "i32")
    found: list[KernelForm] = []
    for form, kernel, dtype in (
        ("activate", 5, "bf16"),
        ("activate", 3, "fp16"),
        ("activate", 5, "fp32"),
        ("pull_back", 5, "bf16"),
        ("spread", 5, "bf16"),
    ):
        pointers = dict.fromkeys(("tokens", "taps", "bias", "upstream", "out"), f"*{dtype}")
        constants = {"KERNEL": kernel, "FORM": form, "BLOCK_X": 16, "BLOCK_C": _CHANNELS}
        name = f"depthwise_kernel {form} {kernel}x{kernel} {dtype}"
        types = {**pointers, **sizes}
        aligned: dict[str, int] = dict.fromkeys((*pointers, *strides), 16)
        found.append(KernelForm(name, depthwise_kernel, types, constants, aligned, warps=1))
    return found


def _convolve(
    patches: Tensor,
    weight: Tensor,
    bias: Tensor,
    upstream: Tensor | None,
    out: Tensor,
    grid: tuple[int, int],
    form: str,
) -> None:
    images, _, channels = patches.shape
    rows, columns = grid
    block_x = 8 if columns <= 8 else 16
    block_c = min(_CHANNELS, max(16, triton.next_power_of_2(channels)))
    programs = images * triton.cdiv(columns, block_x) * triton.cdiv(rows, 2)
    taps = weight.flatten(1).t().contiguous()
    with on_device_of(patches):
        launch(
            depthwise_kernel,
            (programs, triton.cdiv(channels, block_c)),
            patches,
            taps,
            bias,
            out if upstream is None else upstream,
            out,
            rows,
            columns,
            channels,
            patches.stride(0),
            patches.stride(1),
            out.stride(0),
            KERNEL=weight.shape[-1],
            FORM=form,
            BLOCK_X=block_x,
            BLOCK_C=block_c,
            # Weights go through shared memory into the shape of the tokens; within one warp that needs no barrier.
            num_warps=1,
        )


def _patches(tokens: Tensor, count: int) -> Tensor:
    return rows_of(tokens)[:, tokens.shape[1] - count :]
