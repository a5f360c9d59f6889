"""Sparse attention to time beside dense fused attention, with and without the choice of keys."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.kernels.connectivity import ConnectivityPredictor
from vitslim.kernels.cost import kept_keys_macs, sparse_attention_macs
from vitslim.kernels.sparse_attention import kept_keys, sparse_attention, tile_count

TOKENS = (197, 577, 1025, 4097)
"""Patches of 16 pixels in images of 224, 384, 512 and 1024, and a class token."""

# DeiT-S
HEADS, WIDTH, PREFIX = 6, 64, 1
# Sparsifiner's defaults: a quarter of the keys, a sixth of the tokens as rows of the basis, 8 coefficients, 0.02.
_KEEP_RATE, _REDUCTION, _TOP, _THRESHOLD = 0.25, 6, 8, 0.02
_TILE = 64
_IMAGE_ROWS = 32  # of the basis, at most, where all queries share one key set


@dataclass(frozen=True)
class KernelCase:
    """One computation and the dense one that it stands for.

    Args:
        name: what is computed.
        tokens: n.
        call: the computation, predictor and choice of keys included unless the name says that keys are given.
        dense: the baseline, on the same operands.
        bytes: that ``call`` has to move at least: every operand once.
        flops: that its definition needs, with two to a multiply-accumulate; the predictor's own products not counted.
    """

    name: str
    tokens: int
    call: Callable[[], object]
    dense: Callable[[], object]
    bytes: int
    flops: int


def noise(device: torch.device | str, dtype: torch.dtype, *shape: int) -> Tensor:
    """Standard normal numbers, drawn on the device: a CPU takes minutes for those of the largest cases."""
    return torch.randn(*shape, device=device, generator=torch.Generator(device).manual_seed(0)).to(dtype)


def patch_grid(tokens: int) -> tuple[int, int]:
    """The square of patches behind a class token.

    Raises:
        ConfigError: the patches are no square.
    """
    side = math.isqrt(max(0, tokens - PREFIX))
    if side == 0 or side**2 != tokens - PREFIX:
        raise ConfigError(f"{tokens} tokens are no class token and a square of patches; choose from {TOKENS}")
    return side, side


def kernel_cases(device: torch.device | str, dtype: torch.dtype, tokens: int, batch: int) -> list[KernelCase]:
    """Sparse attention of DeiT-S with a quarter of the keys, per tile and per image; without gradients.

    Calls are safe to capture into a CUDA graph once they have run, which compiles the kernels.

    Args:
        tokens: one class token and a square of patches, such as those of ``TOKENS``.
        batch: images.

    Raises:
        ConfigError: the patches are no square.
    """
    grid, patches = patch_grid(tokens), tokens - PREFIX
    # As they lie behind a joined projection.
    query, key, value = noise(device, dtype, batch, tokens, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0)
    keys, scale = max(PREFIX + 1, math.ceil(_KEEP_RATE * tokens)), WIDTH**-0.5

    def guess(rows: int) -> ConnectivityPredictor:
        predictor = ConnectivityPredictor(WIDTH, scale, PREFIX, grid, rows)
        predictor.start_at_regions_(query[:1].float().cpu(), key[:1].float().cpu())
        return predictor.to(device, dtype)

    def dense() -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)

    def case(name: str, tile: int, predictor: ConnectivityPredictor, *, given: bool = False) -> KernelCase:
        def choose() -> Tensor:
            down, basis = predictor.matrices(grid)
            size = basis.abs()
            basis = torch.where(size > _THRESHOLD, size, 0.0)
            coefficients = predictor(query[:, :, PREFIX:], key, down)
            return kept_keys(coefficients, basis, top=_TOP, keys=keys, tile=tile, prefix=PREFIX)

        @torch.no_grad()
        def call() -> Tensor:
            chosen = choose() if kept is None else kept
            return sparse_attention(query, key, value, chosen, tile=tile, prefix=PREFIX, scale=scale)

        kept = torch.no_grad()(choose)() if given else None
        indices = batch, HEADS, tile_count(patches, tile), keys
        macs = sparse_attention_macs(query.shape, key.shape, value.shape, indices, None, tile, PREFIX, scale)
        if not given:
            rows = predictor.basis.shape[0]
            macs += kept_keys_macs((batch, HEADS, patches, rows), (rows, tokens), _TOP, keys, tile, PREFIX)
        moved = 4 * query.numel() * query.element_size() + 8 * math.prod(indices)
        return KernelCase(name, tokens, call, dense, moved, 2 * macs)

    fine = guess(max(_TOP, tokens // _REDUCTION))
    return [
        case(f"tiles of {_TILE}", _TILE, fine),
        case(f"tiles of {_TILE}, keys given", _TILE, fine, given=True),
        case("image", patches, guess(min(fine.basis.shape[0], _IMAGE_ROWS))),
    ]
