"""Sparse attention to time against dense fused attention, the choice of keys counted."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitslim.errors import ConfigError
from vitslim.kernels.bit_attention import bit_attention, kept_bits
from vitslim.kernels.connectivity import ConnectivityPredictor
from vitslim.kernels.cost import kept_keys_macs, sparse_attention_macs
from vitslim.kernels.sparse_attention import kept_keys, sparse_attention, tile_count

TOKENS = (197, 577, 1025, 4097)
"""Patches of 16 pixels in images of 224, 384, 512 and 1024, and a class token."""

# DeiT-S
_HEADS, _WIDTH, _PREFIX = 6, 64, 1
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
        dense: dense fused attention on the same queries, keys and values.
        bytes: that ``call`` has to move at least: every operand once.
        flops: that its definition needs, with two to a multiply-accumulate; the predictor's own products not counted.
    """

    name: str
    tokens: int
    call: Callable[[], Tensor]
    dense: Callable[[], Tensor]
    bytes: int
    flops: int


def noise(device: torch.device | str, *shape: int) -> Tensor:
    """Standard normal numbers, drawn on the device: a CPU takes minutes for those of the largest cases."""
    return torch.randn(*shape, device=device, generator=torch.Generator(device).manual_seed(0))


def kernel_cases(device: torch.device | str, dtype: torch.dtype, tokens: int, batch: int) -> list[KernelCase]:
    """Sparse attention of DeiT-S with a quarter of the keys, in each granularity; without gradients.

    Calls are safe to capture into a CUDA graph once they have run, which compiles the kernels.

    Args:
        tokens: one class token and a square of patches, such as those of ``TOKENS``.
        batch: images.

    Raises:
        ConfigError: the patches are no square.
    """
    given = (torch.device(device), dtype, tokens, batch)
    return [*Problem(*given).cases(), Problem(*given, most_rows=_IMAGE_ROWS).image_case()]


class Problem:
    """Operands, predictor and the calls on them.

    Args:
        width: of a head.
        most_rows: of the basis.
    """

    PREFIX = _PREFIX
    TILE = _TILE

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        tokens: int,
        batch: int,
        width: int = _WIDTH,
        most_rows: int | None = None,
    ) -> None:
        side = math.isqrt(max(0, tokens - _PREFIX))
        if side == 0 or side**2 != tokens - _PREFIX:
            raise ConfigError(f"{tokens} tokens are no class token and a square of patches; choose from {TOKENS}")
        self.tokens, self.batch, self.width, self.scale = tokens, batch, width, width**-0.5
        self.keys = max(_PREFIX + 1, math.ceil(_KEEP_RATE * self.tokens))
        # As they lie behind a joined projection.
        drawn = noise(device, batch, self.tokens, 3, _HEADS, self.width)
        joined = drawn.to(dtype).permute(2, 0, 3, 1, 4)
        self.query, self.key, self.value = joined.unbind(0)
        self.grid = (side, side)
        rows = max(_TOP, self.tokens // _REDUCTION)
        self.directions = rows if most_rows is None else min(rows, most_rows)
        predictor = ConnectivityPredictor(self.width, self.scale, _PREFIX, self.grid, self.directions)
        queries, keys, _ = drawn[:1].cpu().permute(2, 0, 3, 1, 4).unbind(0)
        predictor.start_at_regions_(queries, keys)
        self.predictor = predictor.to(device, dtype).requires_grad_(False)

    def cases(self) -> list[KernelCase]:
        bits, kept = self.bits(), self.kept(_TILE)
        calls = {
            "bit mask": (1, lambda: self.by_bits(self.bits())),
            "bit mask, bits given": (1, lambda: self.by_bits(bits)),
            f"tiles of {_TILE}": (_TILE, lambda: self.by_keys(self.kept(_TILE), _TILE)),
            f"tiles of {_TILE}, keys given": (_TILE, lambda: self.by_keys(kept, _TILE)),
        }
        return [self._case(name, tile, call) for name, (tile, call) in calls.items()]

    def image_case(self) -> KernelCase:
        patches = self.tokens - _PREFIX
        return self._case("image", patches, lambda: self.by_keys(self.kept(patches), patches))

    def guess(self) -> tuple[Tensor, Tensor]:
        down, basis = self.predictor.matrices(self.grid)
        size = basis.abs()
        basis = torch.where(size > _THRESHOLD, size, 0.0)
        return self.predictor(self.query[:, :, _PREFIX:], self.key, down), basis

    def bits(self) -> Tensor:
        return kept_bits(*self.guess(), top=_TOP, keys=self.keys, tile=1, prefix=_PREFIX)

    def kept(self, tile: int) -> Tensor:
        return kept_keys(*self.guess(), top=_TOP, keys=self.keys, tile=tile, prefix=_PREFIX)

    def by_bits(self, bits: Tensor) -> Tensor:
        return bit_attention(self.query, self.key, self.value, bits, tile=1, prefix=_PREFIX, scale=self.scale)

    def by_keys(self, kept: Tensor, tile: int) -> Tensor:
        return sparse_attention(self.query, self.key, self.value, kept, tile=tile, prefix=_PREFIX, scale=self.scale)

    def dense(self) -> Tensor:
        return F.scaled_dot_product_attention(self.query, self.key, self.value)

    def bytes(self, tile: int) -> int:
        tiles = tile_count(self.tokens - _PREFIX, tile)
        tile_bytes = -(-self.tokens // 32) * 4 if tile == 1 else 8 * self.keys
        chosen = self.batch * _HEADS * tiles * tile_bytes
        return 4 * self.query.numel() * self.query.element_size() + chosen

    def _case(self, name: str, tile: int, call: Callable[[], Tensor]) -> KernelCase:
        return KernelCase(
            name, self.tokens, _without_gradient(call), self.dense, self.bytes(tile), self.flops(name, tile)
        )

    def flops(self, name: str, tile: int) -> int:
        tiles = tile_count(self.tokens - _PREFIX, tile)
        rows = (self.batch, _HEADS, self.tokens, self.width)
        kept = (self.batch, _HEADS, tiles, self.keys)
        macs = sparse_attention_macs(rows, rows, rows, kept, None, tile, _PREFIX, 1.0)
        if not name.endswith("given"):
            coefficients = (self.batch, _HEADS, self.tokens - _PREFIX, self.directions)
            macs += kept_keys_macs(coefficients, (self.directions, self.tokens), _TOP, self.keys, tile, _PREFIX)
        return 2 * macs


def _without_gradient(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return torch.no_grad()(call)
