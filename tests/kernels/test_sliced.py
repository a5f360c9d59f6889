import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vitslim.kernels import seeded_permutation, sliced_attention, sliced_mask

# Two orders of summation in float32 over rows of unit scale.
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def operands(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(2, 3, tokens, 8, generator=generator) for _ in range(3))


def fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)


def slow(tokens: int, groups: int, prefix: int, bias: Tensor | None) -> Tensor:
    query, key, value = operands(tokens)
    scores = torch.einsum("bhie,bhje->bhij", query, key) * 8**-0.5
    scores = scores if bias is None else scores + bias
    return scores.masked_fill(~sliced_mask(tokens, groups, prefix=prefix), float("-inf")).softmax(dim=-1) @ value


@given(groups=st.integers(1, 5), size=st.integers(1, 6), prefix=st.sampled_from([0, 1, 2, 5]), biased=st.booleans())
def test_slices_equal_dense_attention_under_a_mask(groups: int, size: int, prefix: int, biased: bool) -> None:
    tokens = prefix + groups * size
    bias = torch.randn(1, 3, tokens, tokens, generator=torch.Generator().manual_seed(1)) if biased else None
    mixed = sliced_attention(fused, *operands(tokens), groups, prefix=prefix, bias=bias)
    torch.testing.assert_close(mixed, slow(tokens, groups, prefix, bias), **CLOSE)


@pytest.mark.parametrize("shape", [(13, 13), (1, 13), (3, 13, 13), (1, 1, 13, 13), (2, 1, 1, 13), (2, 3, 13, 13)])
def test_a_bias_may_broadcast(shape: tuple[int, ...]) -> None:
    bias = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    mixed = sliced_attention(fused, *operands(13), 4, prefix=1, bias=bias)
    torch.testing.assert_close(mixed, slow(13, 4, 1, bias), **CLOSE)


@given(st.integers(1, 5))
def test_one_slice_is_ordinary_attention(prefix: int) -> None:
    tokens = prefix + 12
    mixed = sliced_attention(fused, *operands(tokens), 1, prefix=prefix)
    torch.testing.assert_close(mixed, fused(*operands(tokens), None), **CLOSE)


def test_the_scores_that_are_computed_are_those_of_the_slices() -> None:
    shapes: list[tuple[int, ...]] = []

    def watched(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append((*query.shape[:3], key.shape[2]))
        return fused(query, key, value, bias)

    sliced_attention(watched, *operands(14), 4, prefix=2)
    # 4 slices of 3 patches beside 3 heads, each reading 2 prefix keys and its own 3; then 2 prefix queries, all keys.
    assert shapes == [(2, 12, 3, 5), (2, 3, 2, 14)]


def test_a_slice_does_not_see_the_others() -> None:
    query, key, value = operands(14)
    before = sliced_attention(fused, query, key, value, 4, prefix=2)
    key, value = key.clone(), value.clone()
    key[:, :, 5:8], value[:, :, 5:8] = 7.0, 7.0
    after = sliced_attention(fused, query, key, value, 4, prefix=2)
    changed = (before != after).any(dim=-1)[0, 0]
    # The prefix reads everything; of the patches only the second slice notices.
    assert changed.nonzero().flatten().tolist() == [0, 1, 5, 6, 7]


@given(st.integers(0, 50), st.integers(0, 3))
def test_a_seeded_permutation_is_one(count: int, seed: int) -> None:
    order = seeded_permutation(count, seed)
    assert sorted(order) == list(range(count))
    assert order == seeded_permutation(count, seed)


def test_permutations_are_the_same_for_ever() -> None:
    assert seeded_permutation(8, 0) == [7, 4, 3, 2, 6, 0, 5, 1]
    assert seeded_permutation(8, 0) != seeded_permutation(8, 1)
