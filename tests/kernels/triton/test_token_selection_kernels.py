"""The Triton kernels that choose tokens, against their plain forms: interpreted on a CPU, compiled on a GPU."""

import pytest
import torch
from torch import Tensor

from tests.kernels.triton.closeness import DEVICES, drawn, require_close, sizes_in_types
from vitslim.kernels.token_selection import (
    plain_argsort_by_score,
    plain_class_row,
    plain_gather_split,
    plain_scatter_back,
)

pytest.importorskip("triton")
from vitslim.kernels.triton import token_selection


@pytest.mark.parametrize(
    ("size", "dtype", "device"), sizes_in_types([(2, 3, 17, 16), (1, 2, 130, 64), (1, 1, 5, 7)], [(9, 6, 4097, 80)])
)
def test_class_row_of_keys_between_queries_and_values(size: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    images, heads, tokens, width = size
    joined = drawn(images, tokens, 3, heads, width, dtype=dtype, device=device, scale=2.0)
    query, key = (joined[:, :, part].transpose(1, 2) for part in (0, 1))
    row = token_selection.class_row(query[:, :, :1], key, width**-0.5)
    require_close(row, plain_class_row(query[:, :, :1].double(), key.double(), None, width**-0.5))


@pytest.mark.parametrize("device", DEVICES)
def test_large_scores_do_not_overflow_the_class_row(device: str) -> None:
    query, key = (drawn(1, 1, count, 16, dtype=torch.float32, device=device, scale=40.0) for count in (1, 300))
    row = token_selection.class_row(query, key, 1.0)
    torch.testing.assert_close(row, plain_class_row(query, key, None, 1.0))


@pytest.mark.parametrize(
    ("size", "dtype", "device"), sizes_in_types([(2, 70, 1), (3, 33, 0), (1, 1, 40)], [(5, 4096, 1)])
)
def test_ranking_is_the_stable_sort(size: tuple[int, int, int], dtype: torch.dtype, device: str) -> None:
    images, patches, prefix = size
    # Few values, so that most have equals; both signs.
    scores = (2.0 * drawn(images, patches, dtype=torch.float32, device=device)).round().to(dtype)
    falling, indices = token_selection.argsort_by_score(scores, prefix)
    expected_falling, expected_indices = plain_argsort_by_score(scores, prefix)
    assert torch.equal(indices, expected_indices)
    assert torch.equal(falling, expected_falling)


@pytest.mark.parametrize("device", DEVICES)
def test_ranking_is_a_permutation_even_of_what_is_no_number(device: str) -> None:
    odd = [0.0, -0.0, float("nan"), float("inf"), -float("inf"), float("nan"), 1e-40, -1e-40, 0.0, -float("nan")]
    scores = torch.tensor([odd], device=device)
    _, indices = token_selection.argsort_by_score(scores, 1)
    assert torch.equal(indices, plain_argsort_by_score(scores, 1)[1])


def shuffled(images: int, count: int, device: str) -> Tensor:
    return torch.rand(images, count, generator=torch.Generator().manual_seed(4)).argsort(dim=1).to(device)


@pytest.mark.parametrize(
    ("size", "dtype", "device"),
    sizes_in_types([(17, 17, 9, 12), (17, 9, 5, 260), (17, 5, 17, 1)], [(4097, 2049, 1025, 768)]),
)
def test_moves_are_exact_and_undo_each_other(size: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    count, ahead, ahead_out, width = size
    wide = drawn(2, count, width + 3, dtype=dtype, device=device)
    first, second = wide[:, :ahead, 2:-1], wide[:, ahead:, 2:-1]
    indices = shuffled(2, count, device)
    apart = token_selection.moved(first, second, indices, ahead_out, scatter=False)
    assert all(map(torch.equal, apart, plain_gather_split(first, second, indices, ahead_out)))
    back = token_selection.moved(*apart, indices, ahead, scatter=True)
    assert all(map(torch.equal, back, (first, second)))
    assert all(map(torch.equal, back, plain_scatter_back(*apart, indices, ahead)))
