from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitslim.analysis.recommend import recommend
from vitslim.analysis.result import Replacement
from vitslim.errors import ConfigError


def effects(*changes: float | None) -> list[Replacement]:
    """One identity replacement per layer, from layer 1; the linear map twice as bad."""
    rows: list[Replacement] = []
    for layer, change in enumerate(changes, start=1):
        rows.append(Replacement(layer=layer, kind="identity", kl=change, top1_agreement=0.5))
        rows.append(Replacement(layer=layer, kind="linear", kl=None if change is None else 2 * change))
    return rows


def even(depth: int, value: float | None = 0.5) -> list[list[float | None]]:
    return [[1.0 if a == b else value for b in range(depth)] for a in range(depth)]


def slow_price(layers: tuple[int, ...], changes: list[float], r2: list[float | None], cka: list[list[float]]) -> float:
    price = 0.0
    for layer in layers:
        source = max(lower for lower in range(layer) if lower not in layers)
        price += changes[layer - 1] * (2 - (r2[layer] or 0)) * (2 - cka[source][layer])
    return price


@given(st.integers(2, 7), st.data())
@settings(max_examples=40, deadline=None)
def test_the_set_is_the_cheapest_of_all_sets(depth: int, data: st.DataObject) -> None:
    share = st.floats(0, 1, allow_subnormal=False)
    changes = data.draw(st.lists(st.floats(0.01, 10), min_size=depth - 1, max_size=depth - 1))
    r2 = [None, *data.draw(st.lists(share, min_size=depth - 1, max_size=depth - 1))]
    cka = [data.draw(st.lists(share, min_size=depth, max_size=depth)) for _ in range(depth)]
    size = data.draw(st.integers(1, depth - 1))
    found = recommend(effects(*changes), r2, cka, max_layers=size)
    wanted = min(slow_price(layers, changes, r2, cka) for layers in combinations(range(1, depth), size))
    assert len(found.layers) == size
    assert found.estimated_change == pytest.approx(wanted)
    assert slow_price(tuple(found.layers), changes, r2, cka) == pytest.approx(wanted)


def test_half_of_the_depth_is_the_default_and_block_0_always_stays() -> None:
    found = recommend(effects(*[0.1] * 11), [None, *[0.5] * 11], even(12))
    assert len(found.layers) == 6
    assert found.max_layers == 6
    assert 0 not in found.layers
    assert len(recommend(effects(*[0.1] * 11), [None, *[0.5] * 11], even(12), max_layers=11).layers) == 11


def test_the_least_damaging_layers_are_chosen() -> None:
    found = recommend(effects(0.9, 0.1, 0.8, 0.05, 0.7), [None, *[0.5] * 5], even(6), max_layers=2)
    assert found.layers == [2, 4]


def test_the_reason_says_where_no_patch_reaches_the_class_token_any_more() -> None:
    figures = effects(0.9, 0.8, 0.1, 0.05), [None, *[0.5] * 4], even(5)
    said = "behind block 2 no patch reaches it"
    assert said in recommend(*figures, max_layers=2, reads_class_token=True).reason
    assert said not in recommend(*figures, max_layers=2).reason
    assert (
        "no patch"
        not in recommend(effects(0.1, 0.05, 0.8, 0.9), *figures[1:], max_layers=2, reads_class_token=True).reason
    )


def test_equal_damage_is_decided_by_r2_then_by_likeness() -> None:
    assert recommend(effects(0.1, 0.1, 0.1), [None, 0.2, 0.9, 0.5], even(4), max_layers=1).layers == [2]
    cka = even(4)
    cka[2][3] = 0.95
    assert recommend(effects(0.1, 0.1, 0.1), [None, 0.5, 0.5, 0.5], cka, max_layers=1).layers == [3]


def test_a_run_is_charged_for_the_source_that_it_really_reuses() -> None:
    cka = even(5, 0.9)
    cka[1][3] = 0.0  # layer 3 is like 2, but a run 2-3 would feed it from 1
    assert recommend(effects(9.0, 0.1, 0.1, 0.105), [None, *[0.5] * 4], cka, max_layers=2).layers == [2, 4]


def test_max_kl_shrinks_the_set() -> None:
    r2, cka = [None, *[1.0] * 3], even(4, 1.0)
    assert recommend(effects(0.1, 0.2, 0.4), r2, cka, max_layers=3, max_kl=0.3001).layers == [1, 2]
    none = recommend(effects(0.1, 0.2, 0.4), r2, cka, max_kl=0.05)
    assert none.layers == []
    assert none.reason == "No block: the cheapest costs 0.1 nats, more than max_kl=0.05 allows."


def test_a_layer_without_a_measured_change_is_kept() -> None:
    found = recommend(effects(0.1, None, 0.1), [None, *[0.5] * 3], even(4), max_layers=3)
    assert found.layers == [1, 3]
    assert recommend(effects(None), [None, 0.5], even(2)).layers == []


def test_unknown_figures_count_as_the_worst() -> None:
    assert recommend(effects(0.1, 0.1), [None, None, 0.1], even(3), max_layers=1).layers == [2]


def test_the_reason_holds_its_figures() -> None:
    found = recommend(effects(0.9, 0.1, 0.2), [None, 0.3, 0.5, 0.75], even(4), max_layers=2)
    assert found.reason == (
        "Blocks 2-3 of 4 are the cheapest to reuse: replaced alone, each changes the output by 0.1 to 0.2 nats "
        "(median of all blocks 0.2); a linear map of the block before explains 50% to 75% of the variance (R²); "
        "CKA with the block it reuses is 0.50; summed price 0.6 nats. "
        "Of those kept, block 1 would cost most (0.9 nats)."
    )


def test_a_budget_that_cannot_be_is_refused() -> None:
    for size in (-1, 4):
        with pytest.raises(ConfigError, match=rf"max_layers={size}: block 0 has nothing to reuse, so choose from 0..3"):
            recommend(effects(0.1, 0.1, 0.1), [None, *[0.5] * 3], even(4), max_layers=size)
    with pytest.raises(ConfigError, match="max_kl=-1"):
        recommend(effects(0.1), [None, 0.5], even(2), max_kl=-1.0)


def test_a_model_of_one_block_has_nothing_to_give_up() -> None:
    found = recommend([], [None], [[1.0]])
    assert found.layers == []
    assert found.reason == "No block: max_layers is 0, or the model is too shallow to give one up."
