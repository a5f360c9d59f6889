import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitslim.kernels.token_selection import argsort_by_score
from vitslim.kernels.tokens import inverse, take, take_pairs, take_shared

SIZES = st.tuples(st.integers(1, 4), st.integers(1, 33), st.integers(0, 3))


def shuffled(batch: int, count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, count, generator=torch.Generator().manual_seed(seed)).argsort(dim=1)


@given(SIZES)
def test_argsort_indices_are_a_permutation_with_the_prefix_first(size: tuple[int, int, int]) -> None:
    batch, patches, prefix = size
    scores = torch.rand(batch, patches, generator=torch.Generator().manual_seed(1))
    falling, indices = argsort_by_score(scores, prefix)
    assert torch.equal(indices.sort(dim=1).values, torch.arange(prefix + patches).expand(batch, -1))
    assert torch.equal(indices[:, :prefix], torch.arange(prefix).expand(batch, -1))
    assert torch.equal(falling, scores.sort(dim=1, descending=True).values)
    assert torch.equal(scores.gather(1, indices[:, prefix:] - prefix), falling)


def test_equal_scores_keep_their_order() -> None:
    falling, indices = argsort_by_score(torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0]]), 1)
    assert indices.tolist() == [[0, 2, 4, 1, 3, 5]]
    assert falling.tolist() == [[2.0, 2.0, 1.0, 1.0, 1.0]]


@given(SIZES)
def test_the_inverse_undoes_a_permutation(size: tuple[int, int, int]) -> None:
    batch, count, _ = size
    tokens, indices = torch.randn(batch, count, 5), shuffled(batch, count)
    assert torch.equal(take(take(tokens, indices), inverse(indices)), tokens)
    assert torch.equal(take(indices, inverse(indices)), torch.arange(count).expand(batch, -1))


def test_taking_is_indexing_image_by_image() -> None:
    tokens, indices = torch.randn(3, 7, 4), shuffled(3, 7)[:, :5]
    assert torch.equal(take(tokens, indices), torch.stack([one[at] for one, at in zip(tokens, indices, strict=True)]))
    table = torch.randn(2, 7, 6)
    assert torch.equal(take_shared(table, indices), torch.stack([table[:, at] for at in indices]))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("kind", [torch.float32, torch.bool])
def test_pairs_are_taken_by_rows_and_by_columns(batch: int, rows: int, kind: torch.dtype) -> None:
    pairs = (torch.randn(batch, 2, rows, 7) > 0).to(kind)
    indices = shuffled(3, 7)[:, :5]
    slow = [
        one[:, at if rows > 1 else [0]][:, :, at] for one, at in zip(pairs.expand(3, -1, -1, -1), indices, strict=True)
    ]
    assert torch.equal(take_pairs(pairs, indices), torch.stack(slow))


def test_gradients_go_back_to_where_the_tokens_stood() -> None:
    tokens = torch.randn(2, 6, 3, requires_grad=True)
    indices = shuffled(2, 6)[:, :4]
    take(tokens, indices).sum().backward()
    taken = torch.zeros(2, 6).scatter(1, indices, 1.0)
    assert torch.equal(tokens.grad, taken.unsqueeze(2).expand(-1, -1, 3))
