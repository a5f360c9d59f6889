import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitslim.analysis.linear_map import AdjacentMaps
from vitslim.errors import ConfigError


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numpy_fit(source: Tensor, target: Tensor) -> tuple[np.ndarray, float]:
    """Least squares with an intercept by a route of its own; prediction and R²."""
    x = np.concatenate([source.flatten(0, 1).numpy(), np.ones((source.shape[0] * source.shape[1], 1))], axis=1)
    y = target.flatten(0, 1).numpy()
    prediction = x @ np.linalg.lstsq(x, y, rcond=None)[0]
    return prediction, 1 - ((y - prediction) ** 2).sum() / ((y - y.mean(0)) ** 2).sum()


@given(st.integers(1, 4), st.integers(1, 5), st.integers(8, 12), st.integers(1, 7), st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_stream_equals_numpy_least_squares(parts: int, b: int, n: int, d: int, seed: int) -> None:
    first = random(parts * b, n, d, seed=seed) + 5
    second = first @ random(d, d, seed=seed + 1) + random(parts * b, n, d, seed=seed + 2) - 3
    maps = AdjacentMaps(2, d)
    for start in range(0, parts * b, b):
        maps.update([first[start : start + b], second[start : start + b]])
    _, fitted = maps.fit()
    assert fitted is not None
    prediction, r2 = numpy_fit(first, second)
    assert fitted.ridge == 0
    assert fitted.r2 == pytest.approx(r2, abs=1e-9)
    np.testing.assert_allclose(fitted(first).flatten(0, 1).numpy(), prediction, rtol=1e-6, atol=1e-6)


def test_an_exact_linear_map_is_found_and_explains_everything() -> None:
    first = random(8, 9, 5)
    weight, bias = random(5, 5, seed=1), random(5, seed=2)
    maps = AdjacentMaps(2, 5)
    maps.update([first, first @ weight + bias])
    _, fitted = maps.fit()
    assert fitted is not None
    assert fitted.r2 == pytest.approx(1, abs=1e-12)
    torch.testing.assert_close(fitted.weight, weight)
    torch.testing.assert_close(fitted.bias, bias)


def test_unrelated_outputs_explain_little() -> None:
    maps = AdjacentMaps(2, 4)
    maps.update([random(50, 20, 4), random(50, 20, 4, seed=1)])
    # chance gives channels / tokens = 0.004
    assert maps.fit()[1].r2 < 0.02  # pyright: ignore[reportOptionalMemberAccess]


def test_the_first_layer_has_no_map_and_every_other_has_its_own() -> None:
    z = [random(6, 8, 3, seed=seed) for seed in range(4)]
    z[2] = 2 * z[1]
    maps = AdjacentMaps(4, 3)
    maps.update(z)
    r2 = [None if fitted is None else fitted.r2 for fitted in maps.fit()]
    assert r2[0] is None
    assert r2[2] == pytest.approx(1)
    assert r2[1] == pytest.approx(numpy_fit(z[0], z[1])[1])
    assert r2[3] == pytest.approx(numpy_fit(z[2], z[3])[1])


def test_a_source_of_low_rank_takes_a_ridge_and_keeps_r2() -> None:
    low = random(10, 9, 2) @ random(2, 6, seed=1)
    target = low @ random(6, 6, seed=2) + 0.5 * random(10, 9, 6, seed=3)
    maps = AdjacentMaps(2, 6)
    maps.update([low, target])
    _, fitted = maps.fit()
    assert fitted is not None
    assert fitted.ridge > 0
    assert fitted.r2 == pytest.approx(numpy_fit(low, target)[1], abs=1e-7)
    assert fitted.weight.isfinite().all()


def test_a_constant_source_predicts_the_mean() -> None:
    maps = AdjacentMaps(2, 3)
    target = random(5, 4, 3)
    maps.update([torch.full((5, 4, 3), 0.1), target])
    _, fitted = maps.fit()
    assert fitted is not None
    assert fitted.r2 == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(fitted(torch.full((1, 1, 3), 0.1).double())[0, 0], target.mean((0, 1)))


def test_a_constant_target_has_no_r2() -> None:
    maps = AdjacentMaps(2, 3)
    for seed in range(3):
        maps.update([random(5, 4, 3, seed=seed), torch.full((5, 4, 3), 0.1)])
    assert maps.fit()[1].r2 is None  # pyright: ignore[reportOptionalMemberAccess]


def test_a_large_mean_costs_no_digits() -> None:
    first = random(20, 9, 4)
    second = first @ random(4, 4, seed=1) + random(20, 9, 4, seed=2)
    near, far = AdjacentMaps(2, 4), AdjacentMaps(2, 4)
    near.update([first, second])
    for part in range(0, 20, 5):
        far.update([first[part : part + 5] + 1e6, second[part : part + 5] - 1e6])
    assert far.fit()[1].r2 == pytest.approx(near.fit()[1].r2, abs=1e-8)  # pyright: ignore[reportOptionalMemberAccess]


def test_state_does_not_grow_with_the_stream() -> None:
    maps = AdjacentMaps(3, 4)

    def sizes() -> dict[str, int]:
        return {name: value.numel() for name, value in vars(maps).items() if isinstance(value, Tensor)}

    before = sizes()
    for seed in range(4):
        maps.update([random(5, 6, 4, seed=seed) for _ in range(3)])
    assert sizes() == before
    assert maps.tokens == 4 * 5 * 6


def test_the_map_answers_in_the_precision_it_is_asked_in() -> None:
    maps = AdjacentMaps(2, 3)
    maps.update([random(5, 4, 3).float(), random(5, 4, 3, seed=1).float()])
    fitted = maps.fit()[1]
    assert fitted is not None
    assert fitted(torch.ones(1, 2, 3)).dtype == torch.float32


def test_few_tokens_are_noticed() -> None:
    maps = AdjacentMaps(2, 4)
    maps.update([random(3, 5, 4), random(3, 5, 4)])
    assert not maps.enough_tokens
    maps.update([random(3, 5, 4), random(3, 5, 4)])
    assert maps.enough_tokens


def test_nothing_streamed_is_refused() -> None:
    with pytest.raises(ConfigError, match="no tokens were streamed"):
        AdjacentMaps(2, 4).fit()


def test_another_width_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[4, 3\] channels given, 2 layers of 4"):
        AdjacentMaps(2, 4).update([random(5, 6, 4), random(5, 6, 3)])
