import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

from vitslim.analysis.cka import CkaAccumulator, gram, hsic_of_all_pairs, linear_cka
from vitslim.errors import ConfigError


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal_hsic(k: Tensor, l: Tensor) -> float:  # noqa: E741
    """HSIC₁ as it stands in the paper: explicit trace, explicit vectors of ones, uncentred Gram matrices."""
    n = len(k)
    k, l = k.clone().fill_diagonal_(0), l.clone().fill_diagonal_(0)  # noqa: E741
    one = torch.ones(n, 1, dtype=k.dtype)
    trace = (k @ l).trace()
    sums = (one.T @ k @ one) * (one.T @ l @ one) / ((n - 1) * (n - 2))
    mixed = 2 / (n - 2) * (one.T @ k @ l @ one)
    return float((trace + sums - mixed) / (n * (n - 3)))


def literal_cka(first: Tensor, second: Tensor) -> float:
    k, l = first @ first.T, second @ second.T  # noqa: E741
    return literal_hsic(k, l) / math.sqrt(literal_hsic(k, k) * literal_hsic(l, l))


def combinatorial_hsic(k: Tensor, l: Tensor) -> float:  # noqa: E741
    """The U-statistic that HSIC₁ equals: a mean over all ordered 4-tuples of distinct samples."""
    n, total, count = len(k), 0.0, 0
    for i in range(n):
        for j in range(n):
            for q in range(n):
                for r in range(n):
                    if len({i, j, q, r}) == 4:
                        total += float(k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]))
                        count += 1
    return total / count


@given(st.integers(4, 9), st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_fast_form_equals_the_literal_equation_for_any_shape(samples: int, p: int, q: int, seed: int) -> None:
    first, second = random(samples, p, seed=seed), random(samples, q, seed=seed + 1)
    fast = hsic_of_all_pairs(torch.stack([gram(first), gram(second)]))
    wanted = [[literal_hsic(a @ a.T, b @ b.T) for b in (first, second)] for a in (first, second)]
    torch.testing.assert_close(fast, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_literal_equation_is_the_unbiased_u_statistic() -> None:
    first, second = random(6, 3), random(6, 2, seed=1)
    k, l = first @ first.T, second @ second.T  # noqa: E741
    assert literal_hsic(k, l) == pytest.approx(combinatorial_hsic(k, l), rel=1e-10)


@given(st.integers(4, 20), st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_cka_is_symmetric_and_never_beyond_one(samples: int, p: int, q: int, seed: int) -> None:
    first, second = random(samples, p, seed=seed), random(samples, q, seed=seed + 1)
    value = linear_cka(first, second)
    assert value == pytest.approx(linear_cka(second, first), abs=1e-12)
    # HSIC₁ is an inner product of U-centred Gram matrices, so Cauchy and Schwarz bound it
    assert abs(value) <= 1 + 1e-12


def test_a_layer_is_wholly_like_itself_rotated_scaled_and_shifted() -> None:
    features = random(12, 7)
    rotation, _ = torch.linalg.qr(random(7, 7, seed=1))
    assert linear_cka(features, features) == pytest.approx(1, abs=1e-12)
    assert linear_cka(features, 3.5 * features @ rotation + 100.0) == pytest.approx(1, abs=1e-10)


def test_rotating_one_layer_leaves_its_likeness_to_another() -> None:
    first, second = random(12, 7), random(12, 5, seed=1)
    second[:, 0] += first[:, 0] * 3
    rotation, _ = torch.linalg.qr(random(7, 7, seed=2))
    assert linear_cka(first, second) == pytest.approx(linear_cka(first @ rotation, second), abs=1e-12)


def test_independent_features_average_to_nothing_where_the_biased_estimator_does_not() -> None:
    pairs = [(random(8, 30, seed=2 * i), random(8, 30, seed=2 * i + 1)) for i in range(200)]
    values = torch.tensor([linear_cka(*pair) for pair in pairs])
    # 200 draws: the mean must lie within four of its standard errors of 0, and far from the 0.8 of biased CKA
    assert abs(float(values.mean())) < 4 * float(values.std()) / math.sqrt(200)
    assert abs(float(values.mean())) < 0.08


def test_one_minibatch_is_the_full_batch() -> None:
    layers = [random(16, 5, 3, seed=i) for i in range(3)]
    accumulator = CkaAccumulator(3)
    accumulator.update(layers)
    wanted = [[literal_cka(a.flatten(1), b.flatten(1)) for b in layers] for a in layers]
    torch.testing.assert_close(accumulator.cka(), torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9)


def test_stream_is_the_mean_of_literal_hsic_weighted_by_samples() -> None:
    first, second = random(20, 6), random(20, 4, seed=1)
    second[:, :2] += first[:, :2]
    accumulator = CkaAccumulator(2)
    parts = [slice(0, 8), slice(8, 16), slice(16, 20)]
    for part in parts:
        accumulator.update([first[part], second[part]])

    def streamed(a: Tensor, b: Tensor) -> float:
        return sum(len(a[p]) / 20 * literal_hsic(a[p] @ a[p].T, b[p] @ b[p].T) for p in parts)

    wanted = streamed(first, second) / math.sqrt(streamed(first, first) * streamed(second, second))
    assert float(accumulator.cka()[0, 1]) == pytest.approx(wanted, rel=1e-10)


def test_minibatches_agree_with_the_full_batch_on_many_samples() -> None:
    first = random(2048, 6)
    second = first @ random(6, 6, seed=1) + random(2048, 6, seed=2)
    accumulator = CkaAccumulator(2)
    for start in range(0, 2048, 32):
        accumulator.update([first[start : start + 32], second[start : start + 32]])
    # both estimate the same number without bias; 0.02 is some three standard errors at 2048 samples
    assert float(accumulator.cka()[0, 1]) == pytest.approx(literal_cka(first, second), abs=0.02)


def test_float32_with_a_large_common_part_keeps_its_digits() -> None:
    features, other = random(32, 40), random(32, 40, seed=1)
    exact = literal_cka(features, other)
    # a mean of 100 deviations costs float32 seven digits less two
    assert linear_cka((features + 100).float(), other.float()) == pytest.approx(exact, abs=2e-5)


def test_a_constant_layer_has_no_cka() -> None:
    constant = torch.full((8, 3), 0.1).repeat(1, 5)
    assert math.isnan(linear_cka(constant, random(8, 4).float()))
    accumulator = CkaAccumulator(2)
    accumulator.update([constant, random(8, 4).float()])
    assert accumulator.cka().isnan().tolist() == [[True, True], [True, False]]


def test_state_does_not_grow_with_the_stream() -> None:
    accumulator = CkaAccumulator(2)
    for _ in range(5):
        accumulator.update([random(8, 3), random(8, 3)])
        assert {name: value.numel() for name, value in vars(accumulator).items() if isinstance(value, Tensor)} == {
            "hsic": 4
        }


def test_three_samples_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 images in a batch: the unbiased estimator of CKA needs at least 4"):
        linear_cka(random(3, 2), random(3, 2))


def test_different_samples_are_refused() -> None:
    # with run-time shape checks on, the signature refuses first
    with pytest.raises((ConfigError, TypeCheckError), match=r"5 and 6 samples|Type-check error"):
        linear_cka(random(5, 2), random(6, 2))


def test_a_missing_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 layers given, 2 announced"):
        CkaAccumulator(2).update([random(5, 2)])
