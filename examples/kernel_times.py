"""What the kernels of SkipAt and Evo-ViT cost on this GPU, next to torch's operators and to moving the tokens once.

    python examples/kernel_times.py [batch] [width]

Medians of CUDA graphs of one call each, bf16, 14 x 14 patches and a class token. The mark for a selection is one
LayerNorm pass plus one read and one write of the tokens.
"""

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vitslim.kernels.skip_function import plain_channel_attention, plain_depthwise_gelu
from vitslim.kernels.token_selection import plain_class_row, plain_put_back, plain_ranked, plain_taken_apart

Call = Callable[[], object]
GRID, HEAD = 14, 64


def problems(batch: int, width: int, device: str) -> dict[str, tuple[Call, Call | None]]:
    """By name: the computation in torch's operators, and through vitslim's op where there is one."""
    ops, patches = torch.ops.vitslim, GRID * GRID

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    tokens, qkv = drawn(batch, 1 + patches, width), drawn(batch, 1 + patches, 3, width // HEAD, HEAD)
    query, key = (qkv[:, :, part].transpose(1, 2) for part in (0, 1))
    scores = torch.rand(batch, patches, device=device)
    places = plain_ranked(scores, 1)[1]
    ahead = 1 + patches // 2
    apart = plain_taken_apart(tokens, None, places, ahead)
    found: dict[str, tuple[Call, Call | None]] = {
        "LayerNorm pass": (lambda: F.layer_norm(tokens, (width,)), None),
        "read and write": (tokens.clone, None),
        "class row": (
            lambda: plain_class_row(query[:, :, :1], key, None, 0.125),
            lambda: ops.class_row(query[:, :, :1], key, 0.125),
        ),
        "order": (lambda: plain_ranked(scores, 1), lambda: ops.ranked(scores, 1)),
        "select": (
            lambda: plain_taken_apart(tokens, None, places, ahead),
            lambda: ops.taken_apart(tokens, tokens[:, :0], places, ahead),
        ),
        "restore": (
            lambda: plain_put_back(*apart, places, 1 + patches),
            lambda: ops.put_back(*apart, places, 1 + patches),
        ),
    }
    for expansion in (2.0, 0.5):
        hidden, weight, bias = (
            drawn(batch, 1 + patches, int(width * expansion)),
            *drawn_kernel(int(width * expansion), device),
        )
        grad = drawn(batch, patches, int(width * expansion))
        given = (hidden, weight, bias, GRID, GRID)
        found[f"convolution, expansion {expansion:g}"] = (
            lambda given=given: plain_depthwise_gelu(given[0][:, 1:], *given[1:]),
            lambda given=given: ops.depthwise_gelu(*given),
        )
        found[f"its gradient, expansion {expansion:g}"] = (
            lambda given=given, grad=grad: torch_gradient(given, grad),
            lambda given=given, grad=grad: ops.depthwise_gelu_backward(grad, *given),
        )
    reduced, scale = drawn(batch, patches, width), drawn(1, 1, 3)
    attention = (tokens[:, :1], reduced, scale, tokens[:, 1:])
    found["channel attention"] = (
        lambda: plain_channel_attention(*attention),
        lambda: ops.channel_attention(*attention),
    )
    return found


def drawn_kernel(channels: int, device: str) -> tuple[Tensor, Tensor]:
    kernel = torch.randn(channels, 1, 5, 5, device=device, dtype=torch.bfloat16)
    return kernel, torch.randn(channels, device=device, dtype=torch.bfloat16)


def torch_gradient(given: tuple[Tensor, Tensor, Tensor, int, int], grad: Tensor) -> object:
    """Forward included: the kernels compute the convolution again as well."""
    operands = [part.detach().requires_grad_() for part in given[:3]]
    return torch.autograd.grad(plain_depthwise_gelu(operands[0][:, 1:], *operands[1:], *given[3:]), operands, grad)


def main(batch: int = 256, width: int = 384) -> None:
    """Measure, print one line per computation, and hold the selection against its mark."""
    on_gpu = torch.cuda.is_available()
    times: dict[str, list[float]] = {}
    for name, calls in problems(batch, width, "cuda" if on_gpu else "cpu").items():
        times[name] = [microseconds(call, on_gpu) for call in calls if call is not None]
    if not on_gpu:
        print(f"no GPU here: {len(times)} computations ran once each, nothing was measured")
        return
    for name, (plain, *own) in times.items():
        print(
            f"{name:34} torch {plain:8.1f} µs" + (f"   kernel {own[0]:8.1f} µs   {plain / own[0]:5.2f}x" if own else "")
        )
    mark = times["LayerNorm pass"][0] + times["read and write"][0]
    selection = sum(times[part][1] for part in ("class row", "order", "select"))
    print(f"a selection costs {selection:.1f} µs, the mark is {mark:.1f} µs")


def microseconds(call: Call, on_gpu: bool) -> float:
    """The median time of a call on the GPU; elsewhere it is only run."""
    if not on_gpu:
        call()
        return 0.0
    from triton.testing import do_bench_cudagraph

    return 1e3 * do_bench_cudagraph(call, return_mode="median")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
