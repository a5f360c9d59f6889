"""What the kernels of SkipAt and Evo-ViT cost on this GPU, next to torch's operators: python examples/kernel_times.py

Medians of CUDA graphs of one call each, DeiT-S at 224 px. A selection is compared with its mark: one LayerNorm pass
plus one read and one write of the tokens.
"""

from collections.abc import Callable

import torch


def main(batch: int = 256, tokens: int = 197) -> None:
    """Measure and print one line per computation."""
    if not torch.cuda.is_available():
        print("no NVIDIA GPU here: nothing to measure")
        return
    from vitslim.kernels.dispatch import triton_mode
    from vitslim.kernels.triton.token_cases import SELECTION, selection_target, token_cases

    where = ("cuda", torch.bfloat16, tokens, batch)
    times: dict[str, float] = {}
    for case in token_cases(*where):
        with triton_mode("1"):
            plain, times[case.name] = microseconds(case.dense), microseconds(case.call)
        rate = case.bytes / times[case.name] / 1e6
        print(f"{case.name:28} torch {plain:8.1f} µs   kernel {times[case.name]:8.1f} µs   {rate:6.2f} TB/s")
    selection, target = sum(times[name] for name in SELECTION), microseconds(selection_target(*where))
    print(f"a selection costs {selection:.1f} µs, its target is {target:.1f} µs")


def microseconds(call: Callable[[], object]) -> float:
    """The median time of a call on the GPU."""
    from triton.testing import do_bench_cudagraph

    return 1e3 * do_bench_cudagraph(call, return_mode="median")


if __name__ == "__main__":
    main()
