"""What foretells recovery: rank correlations, and a regression that is asked only about plans it was not fitted on."""

import numpy as np
import pytest

from vitslim.planner import correlations, fitted_on_others


def test_a_plan_is_foretold_from_the_others_alone() -> None:
    draw = np.random.default_rng(0)
    columns = {name: list(draw.permutation(12).astype(float)) for name in ("first", "second")}
    outcome = list(draw.permutation(12).astype(float))
    found = fitted_on_others(columns, outcome)
    ranks = np.stack(list(columns.values()), axis=1) / 12
    for left_out in range(12):
        kept = [index for index in range(12) if index != left_out]
        # an intercept that is free, slopes that are held back
        design = np.concatenate([np.ones((11, 1)), ranks[kept] - ranks.mean(0)], axis=1)
        penalty = np.diag([0.0, 0.1, 0.1])
        weights = np.linalg.solve(design.T @ design + penalty, design.T @ np.array(outcome)[kept])
        assert found[left_out] == pytest.approx(weights[0] + (ranks[left_out] - ranks.mean(0)) @ weights[1:])


def test_two_halves_of_the_truth_foretell_more_together() -> None:
    draw = np.random.default_rng(0)
    one, other = draw.normal(size=60), draw.normal(size=60)
    columns = {"one": list(one), "other": list(other)}
    outcome = list(one + other)
    together = {**columns, "fitted": fitted_on_others(columns, outcome)}
    found = correlations(together, outcome)
    assert found["fitted"] > max(found["one"], found["other"]) + 0.1
