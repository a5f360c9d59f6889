"""Attention that is quick to differentiate on a CPU."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def quick_gradients(model: nn.Module, device: torch.device) -> Generator[None]:
    """On a CPU, compute attention as plain products while the model trains; elsewhere change nothing.

    The backward pass of torch's fused CPU attention is slow: at 65 tokens, 4 heads of 32, batch 128 it took 118 ms
    per block, more than everything else of the block together (torch 2.15, Xeon with AMX). Plain products train such
    a ViT twice as fast. The flags of timm's attention modules are put back at the end.
    """
    if device.type != "cpu":
        yield
        return
    fused = [module for module in model.modules() if getattr(module, "fused_attn", False) is True]
    reduced = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    for module in fused:
        module.fused_attn = False  # pyright: ignore[reportAttributeAccessIssue,reportArgumentType]
    # Despite its name the flag rules on the CPU too: bf16 products stay bf16 instead of going through float32.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(reduced)
        for module in fused:
            module.fused_attn = True  # pyright: ignore[reportAttributeAccessIssue,reportArgumentType]
