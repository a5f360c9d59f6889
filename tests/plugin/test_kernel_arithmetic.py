"""The CUDA kernels' own source, run on the CPU, against the reference: numbers, bounds, barriers.

Fibres stand for threads (``emulation/``), so everything but the GPU's scheduling and memory is the real thing: indices,
shared memory, online softmax, the launcher's choices.
"""

import ctypes

import pytest
import torch
from torch import Tensor

from vitslim.kernels.sparse_attention import kept_mask, tile_count

TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
DIRECT, STAGED = 1, 2
INVALID_VALUE = 1
# Tokens, head width, prefix, tile, keys: no tile, tokens or key count is a multiple of anything.
ODD = [
    (17, 8, 1, 1, 5),
    (37, 17, 2, 1, 33),
    (41, 48, 1, 9, 20),
    (53, 64, 5, 40, 7),
    (21, 128, 0, 3, 21),
    (70, 33, 1, 69, 65),
    (5, 16, 5, 4, 1),  # no patch tokens at all
    (9, 1, 0, 1, 1),
]


def operands(
    tokens: int, width: int, prefix: int, tile: int, keys: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    query, key, value = (torch.randn(1, 2, tokens, width, generator=generator).to(dtype) for _ in range(3))
    tiles = tile_count(tokens - prefix, tile)
    kept = torch.rand(1, 2, tiles, tokens, generator=generator).argsort(-1)[..., :keys].int().contiguous()
    return query, key, value, kept


def exact(query: Tensor, key: Tensor, value: Tensor, kept: Tensor, tile: int, prefix: int, scale: float) -> Tensor:
    scores = query.double() @ key.double().transpose(-2, -1) * scale
    seen = kept_mask(kept.long(), key.shape[2], tile, prefix)
    return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value.double()


def between_walls(part: Tensor, wall: float, shift: int = 0) -> Tensor:
    """The same values, with ``wall`` on both sides in memory; ``shift`` elements away from a multiple of 16 bytes."""
    size = part.numel()
    room = torch.full((size + 128,), wall, dtype=part.dtype)
    start = next(i for i in range(32, 64) if room[i:].data_ptr() % 16 == 0) + shift
    room[start : start + size] = part.flatten()
    return room[start : start + size].view(part.shape)


def run(
    library: ctypes.CDLL,
    parts: tuple[Tensor, ...],
    tile: int,
    prefix: int,
    scale: float,
    tactic: int = 0,
    shift: int = 0,
) -> Tensor:
    # Whatever is read beyond the operands turns the result into NaN.
    query, key, value = (between_walls(part, float("nan"), shift) for part in parts[:3])
    mixed = between_walls(torch.zeros_like(query), 7.0, shift)
    kept = parts[3]
    numbers = [TYPES[query.dtype], *query.shape, *kept.shape[2:], tile, prefix]
    pointers = [part.data_ptr() for part in (query, key, value, kept, mixed)]
    assert library.vitslim_sparse_attention_by(tactic, *pointers, *numbers, scale, None) == 0
    room = mixed.untyped_storage()
    outside = torch.tensor([], dtype=mixed.dtype).set_(room, 0, (mixed.numel() + 128,)).clone()
    start = mixed.storage_offset()
    outside[start : start + mixed.numel()] = 7.0
    assert (outside == 7.0).all()
    return mixed


# Every size in one type, the types in turn; the other pairs are slow.
@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        pytest.param(sizes, dtype, marks=[pytest.mark.slow] if (i + j) % len(TYPES) else [])
        for i, sizes in enumerate(ODD)
        for j, dtype in enumerate(TYPES)
    ],
)
def test_the_numbers_are_those_of_the_definition(
    emulation: ctypes.CDLL, sizes: tuple[int, ...], dtype: torch.dtype
) -> None:
    _, width, prefix, tile, _ = sizes
    parts = operands(*sizes, dtype)
    wanted = exact(*parts, tile, prefix, width**-0.5)
    # fp32 arithmetic throughout: what is left is the rounding of the result, half a unit in its last place.
    tolerance = max(torch.finfo(dtype).eps / 2, 2e-6)
    for tactic in {DIRECT, STAGED if dtype == torch.float16 or tile > 1 else DIRECT}:
        got = run(emulation, parts, tile, prefix, width**-0.5, tactic)
        torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=4e-6)


@pytest.mark.parametrize("order", ["forwards", "backwards"])
@pytest.mark.parametrize("tactic", [DIRECT, STAGED])
def test_the_order_in_which_threads_run_does_not_matter(
    emulation: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch, order: str, tactic: int
) -> None:
    # With a barrier too few, lanes that run first overwrite what the others still need, in one of the two orders.
    monkeypatch.setenv("EMULATION_ORDER", order)
    parts = operands(77, 40, 1, 38, 70)
    got = run(emulation, parts, 38, 1, 0.2, tactic)
    torch.testing.assert_close(got.double(), exact(*parts, 38, 1, 0.2), rtol=2e-6, atol=4e-6)


@pytest.mark.parametrize("tactic", [DIRECT, STAGED])
def test_rows_that_begin_anywhere_are_read_element_by_element(emulation: ctypes.CDLL, tactic: int) -> None:
    parts = operands(19, 16, 1, 9, 11, torch.float16)
    aligned, shifted = (run(emulation, parts, 9, 1, 0.25, tactic, shift) for shift in (0, 1))
    assert torch.equal(aligned, shifted)


def test_large_scores_do_not_overflow(emulation: ctypes.CDLL) -> None:
    query, key, value, kept = operands(40, 16, 1, 1, 36)
    parts = (query * 60, key * 60, value, kept)
    wanted = exact(*parts, 1, 1, 1.0)
    got = run(emulation, parts, 1, 1, 1.0)
    assert got.isfinite().all()
    # Scores around 10⁴: fp32 keeps them to 10⁻³, which the softmax passes on.
    torch.testing.assert_close(got.double(), wanted, rtol=1e-2, atol=1e-2)


def test_equal_scores_give_the_mean_of_the_kept_values(emulation: ctypes.CDLL) -> None:
    query, key, value, kept = operands(30, 8, 2, 7, 13)
    got = run(emulation, (torch.zeros_like(query), key, value, kept), 7, 2, 1.0)
    torch.testing.assert_close(got[:, :, :2], value.mean(2, keepdim=True).expand(-1, -1, 2, -1))
    torch.testing.assert_close(got[0, 1, 2], value[0, 1, kept[0, 1, 0].long()].mean(0))


@pytest.mark.parametrize(
    ("name", "number"),
    [
        *(("dtype", 3), ("b", 0), ("h", 0), ("n", 0), ("e", 0), ("e", 129), ("tiles", 3), ("keys", 0), ("keys", 11)),
        *(("tile", 0), ("prefix", -1), ("prefix", 11), ("tactic", 3)),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_anything_runs(emulation: ctypes.CDLL, name: str, number: int) -> None:
    sizes = {"dtype": 0, "b": 1, "h": 1, "n": 10, "e": 8, "tiles": 9, "keys": 4, "tile": 1, "prefix": 1}
    assert set(sizes) | {"tactic"} >= {name}
    tactic = number if name == "tactic" else 0
    sizes = {given: number if given == name else size for given, size in sizes.items()}
    nowhere = [None] * 5
    assert emulation.vitslim_sparse_attention_by(tactic, *nowhere, *sizes.values(), 1.0, None) == INVALID_VALUE
