"""Tokens taken away in several steps: the best sum of what that does in each alone."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from torch import nn

from vitslim.planner import DamageMeter, Rates, best_rates, measure_rates
from vitslim.planner.rates import SHARES
from vitslim.plans import check
from vitslim.trunk import plan_of


@pytest.fixture(scope="module")
def rates(model: nn.Module, meter: DamageMeter, price: Any) -> dict[str, Rates]:
    return {one.method: one for one in measure_rates(plan_of(model), price, meter)}


def test_rules_that_can_stand_alone_are_measured_in_each_step(
    model: nn.Module, meter: DamageMeter, rates: dict[str, Rates]
) -> None:
    assert set(rates) == {"merge", "prune"}
    dense = plan_of(model)
    for one in rates.values():
        for index, share in product(range(dense.depth), (0.75, 0.5)):
            at = list(SHARES).index(share)
            measured = meter(one.placed(dense, [(index, share)])).kl
            assert one.harms[index, at] >= measured - 1e-9  # never less than with more tokens
        assert all((np.diff(row[np.isfinite(row)]) >= 0).all() for row in one.harms)
        assert (one.harms[:, 0] == 0).all()
    # The first step can merge pairs and no more.
    assert np.isinf(rates["merge"].harms[0, SHARES < 0.5]).all()
    assert np.isfinite(rates["merge"].harms[1:]).all()
    assert np.isfinite(rates["prune"].harms).all()


@pytest.mark.parametrize(("method", "limit"), [("merge", 0.75), ("prune", 0.9)])
def test_the_best_shares_are_those_of_all_that_meet_the_limit(
    model: nn.Module, rates: dict[str, Rates], price: Any, method: str, limit: float
) -> None:
    dense, one = plan_of(model), rates[method]
    found = best_rates(dense, one, price, limit)
    assert found is not None
    plan, total = found
    assert not check(plan)
    assert price(plan) <= limit
    assert len({step.tokens.model_dump_json() for step in plan.steps}) > 1
    falling = (one for one in product(range(len(SHARES)), repeat=dense.depth) if list(one) == sorted(one))
    better = [shares for shares in falling if harm(one, shares) < total - 1e-9]
    # Every saving is rounded down to a part of five hundred.
    assert not any(allowed(model, one, shares, price, limit - 0.01) for shares in better)


def harm(rates: Rates, shares: tuple[int, ...]) -> float:
    steps = zip(rates.harms, shares, (0, *shares), strict=False)
    return sum(float(row[k] - row[j]) for row, k, j in steps if j != k)


def allowed(model: nn.Module, rates: Rates, shares: tuple[int, ...], price: Any, limit: float) -> bool:
    pairs = list(zip(shares, (0, *shares), strict=False))
    if any(SHARES[k] < SHARES[j] / 2 for k, j in pairs) or not np.isfinite(harm(rates, shares)):
        return False
    steps = [(index, float(SHARES[k])) for index, (k, j) in enumerate(pairs) if k != j]
    plan = rates.placed(plan_of(model), steps)
    return price(plan) <= limit and not check(plan)


def test_tokens_stay_where_taking_them_away_harms(model: nn.Module, rates: dict[str, Rates], price: Any) -> None:
    dense, one = plan_of(model), rates["prune"]
    last = one.harms.copy()
    last[:2] = last[:2] * 0 + np.where(SHARES < 1.0, 100.0, 0.0)
    found = best_rates(dense, replace(one, harms=last), price, 0.9)
    assert found is not None
    assert [step.block for step in found[0].steps if step.tokens.picks] in ([2], [2, 3], [3])


def test_nothing_is_found_beyond_reach_or_where_tokens_cost_nothing(
    model: nn.Module, meter: DamageMeter, rates: dict[str, Rates], price: Any
) -> None:
    dense = plan_of(model)
    assert best_rates(dense, rates["merge"], price, 0.05) is None
    assert measure_rates(dense, lambda plan: 1.0, meter) == []
