"""What foretells how well a plan recovers: rank correlations over all trials that were trained for the same steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vitslim.planner.result import Trial

PREDICTORS: Mapping[str, Callable[[Trial], float]] = {
    "KL at the start": lambda trial: trial.damage.kl,
    "sum of the methods' own KL": lambda trial: trial.expected_kl,
    "disagreement at the start": lambda trial: 1.0 - trial.damage.agreement,
    "fewer parameters": lambda trial: -float(trial.parameters),
    "fewer MACs": lambda trial: -float(trial.macs),
}
"""Each rises with the damage that it foretells."""


def rank_correlations(trials: Sequence[Trial]) -> dict[str, float]:
    """Spearman's ρ between each predictor and the divergence after the first short training, -1..1.

    Empty for fewer than three trained trials; a predictor that is the same for all is left out.
    """
    trained = [one for one in trials if one.rungs]
    if len(trained) < 3:
        return {}
    after = _ranks([one.rungs[0].damage.kl for one in trained])
    found: dict[str, float] = {}
    for name, predictor in PREDICTORS.items():
        before = _ranks([predictor(one) for one in trained])
        if before.std() > 0 and after.std() > 0:
            found[name] = float(np.corrcoef(before, after)[0, 1])
    return found


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return (last - (counts - 1) / 2)[group]
