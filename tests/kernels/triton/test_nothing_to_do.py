"""Batches without images and images without patches: the kernels give what their plain forms give."""

from collections.abc import Iterator

import pytest
import torch

from tests.kernels.triton.closeness import DEVICES, drawn
from vitslim.kernels.sparse_attention import masked_attention
from vitslim.kernels.token_selection import plain_argsort_by_score

pytest.importorskip("triton")
from vitslim.kernels.triton import skip_function, tile_attention, token_selection

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
    query, key, value = (drawn(images, 2, 1 + patches, 16, dtype=torch.float32, device=device) for _ in range(3))
    kept = torch.zeros(images, 2, -(-patches // 16), 1, dtype=torch.int64, device=device)
    found = tile_attention.attend(query, key, value, kept, 16, 1, 0.3)
    torch.testing.assert_close(found, masked_attention(query, key, value, kept, None, 16, 1, 0.3))
