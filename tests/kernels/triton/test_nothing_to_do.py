"""Batches without images and images without patches: the kernels give what their plain forms give."""

from collections.abc import Iterator

import pytest
import torch

from tests.kernels.triton.closeness import DEVICES, drawn
from vitslim.kernels.skip_function import plain_channel_attention
from vitslim.kernels.token_selection import plain_argsort_by_score

pytest.importorskip("triton")
from vitslim.kernels.triton import (
    bit_attention,
    bit_attention_backward,
    channel_attention,
    key_choice,
    low_rank_linear,
    skip_function,
    tile_attention,
    token_selection,
)

SIZES = pytest.mark.parametrize(("images", "patches"), [(0, 6), (2, 0), (0, 0)])
ON = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def unwritten_memory_is_filled() -> Iterator[None]:
    """With what is no number, or far out of range."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@ON
@SIZES
def test_convolution(images: int, patches: int, device: str) -> None:
    tokens = drawn(images, 1 + patches, 4, dtype=torch.float32, device=device)
    weight, bias = (drawn(*shape, dtype=torch.float32, device=device) for shape in ((4, 1, 3, 3), (4,)))
    grid = (patches // 3, 3)
    out = skip_function.depthwise_gelu(tokens, weight, bias, *grid)
    assert out.shape == (images, patches, 4)
    for slope, part in zip(
        skip_function.depthwise_gelu_backward(torch.ones_like(out), tokens, weight, bias, *grid),
        (tokens, weight, bias),
        strict=True,
    ):
        assert torch.equal(slope, torch.zeros_like(part))


@ON
@SIZES
def test_channel_attention_leaves_the_front(images: int, patches: int, device: str) -> None:
    front, reduced = (drawn(images, count, 5, dtype=torch.float32, device=device) for count in (2, patches))
    kernel = drawn(1, 1, 3, dtype=torch.float32, device=device)
    joined, _ = channel_attention.channel_attention(front, reduced, kernel, None)
    assert torch.equal(joined, plain_channel_attention(front, reduced, kernel, None)[0])
    sums = channel_attention.token_sums(reduced, reduced).sum(dim=1)
    assert torch.equal(sums, torch.zeros(images, 5, device=device))


@ON
@SIZES
@pytest.mark.parametrize("own_basis", [False, True])
@pytest.mark.parametrize("tile", [1, 4])
def test_choice_of_keys(
    tile: int, own_basis: bool, images: int, patches: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    coefficients = torch.rand(images, 3, patches, 5, device=device)
    basis = torch.rand(*((images,) if own_basis else ()), 5, 1 + patches, device=device)
    for fused in (640, 0):
        monkeypatch.setattr(key_choice, "FUSED_TOKENS", fused)
        kept = key_choice.kept_keys(coefficients, basis, 2, 1, tile, 1)
        assert kept.shape == (images, 3, -(-patches // tile), 1)


@ON
@SIZES
def test_ranking_and_moves(images: int, patches: int, device: str) -> None:
    scores = torch.rand(images, patches, device=device)
    _, indices = token_selection.argsort_by_score(scores, 40)
    assert torch.equal(indices, plain_argsort_by_score(scores, 40)[1])
    rows = drawn(images, patches, 4, dtype=torch.float32, device=device)
    first, second = token_selection.moved(rows, rows[:, :0], indices[:, 40:] - 40, patches, scatter=False)
    assert [first.shape, second.shape] == [(images, patches, 4), (images, 0, 4)]


@ON
@SIZES
def test_attention(images: int, patches: int, device: str) -> None:
    parts = [drawn(images, 2, 1 + patches, 16, dtype=torch.float32, device=device, seed=seed) for seed in range(4)]
    query, key, value, grad = parts
    kept = torch.zeros(images, 2, -(-patches // 16), 1, dtype=torch.int64, device=device)
    bits = torch.ones(images, 2, patches, 1, dtype=torch.int32, device=device)
    of_tiles = tile_attention.attend(query, key, value, kept, 16, 1, 0.3)
    of_bits = bit_attention.attend(query, key, value, bits, 1, 1, 0.3)
    for found, other in zip(of_tiles, of_bits, strict=True):
        torch.testing.assert_close(found, other)
    slopes = bit_attention_backward.gradients(grad, query, key, value, bits, *of_bits, 1, 1, 0.3)
    assert all(slope.shape == part.shape for slope, part in zip(slopes, parts, strict=False))
    assert all(bool(slope.isfinite().all()) for slope in slopes)


@ON
@pytest.mark.parametrize("shape", [(0, 3, 6), (2, 0, 6), (0, 6)])
def test_linear_map(shape: tuple[int, ...], device: str) -> None:
    sizes = (shape, (5, 6), (5, 2), (2, 6), (5,))
    parts = [drawn(*size, dtype=torch.float32, device=device) for size in sizes]
    assert low_rank_linear.mapped(*parts, walked_again=True).shape == (*shape[:-1], 5)
