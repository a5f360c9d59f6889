"""What foretells how well a plan recovers: figures of an analysis for a plan, and rank correlations over all trials."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vitslim.analysis import AnalysisReport
from vitslim.planner.result import Trial
from vitslim.plans import Dense, ModelPlan

PREDICTORS: Mapping[str, Callable[[Trial], float]] = {
    "KL at the start": lambda trial: trial.damage.kl,
    "sum of the KL of its parts alone": lambda trial: trial.expected_kl,
    "disagreement at the start": lambda trial: 1.0 - trial.damage.agreement,
    "fewer parameters": lambda trial: -float(trial.parameters),
    "fewer MACs": lambda trial: -float(trial.macs),
}
"""Each rises with the damage that it foretells; the figures of an analysis come on top."""


_RIDGE = 0.1
"""Beside features between -0.5 and 0.5."""


def figures_of(plan: ModelPlan, analysis: AnalysisReport) -> dict[str, float]:
    """What an analysis of the dense model says of a plan, by name; each rises with the damage that it foretells.

    Every figure is a sum over the blocks that the plan changes in the respect that it is about.
    """
    kept = {step.block: step for step in plan.steps}
    influence = cka = r2 = neurons = heads = 0.0
    for block, shape in enumerate(plan.model.blocks):
        step = kept.get(block)
        if step is None:
            influence += analysis.block_influence[block]
        else:
            neurons += _lost(analysis.mlp_importance[block], step.mlp.hidden(shape.hidden) / shape.hidden)
            heads += _lost(analysis.heads_importance[block], step.attention.heads(shape.heads) / shape.heads)
        if block and (step is None or step.attention != Dense()):
            # How far the attention is from what the one before says, which would stand for it.
            cka += 1.0 - (analysis.cka.z[block][block - 1] or 0.0)
            r2 += 1.0 - (analysis.linear_r2[block] or 0.0)
    return {
        "block influence of dropped blocks": influence,
        "1 - CKA of changed attentions": cka,
        "1 - R² of changed attentions": r2,
        "activation variance of dropped neurons": neurons,
        "importance of dropped heads": heads,
    }


def rank_correlations(trials: Sequence[Trial]) -> dict[str, float]:
    """Spearman's ρ between each predictor and the divergence after the first short training, -1..1.

    Empty for fewer than three trained trials; a predictor that is the same for all is left out.
    """
    trained = [one for one in trials if one.rungs]
    names = dict.fromkeys(name for one in trained for name in one.figures)
    columns = {name: [predictor(one) for one in trained] for name, predictor in PREDICTORS.items()}
    columns |= {name: [one.figures.get(name, 0.0) for one in trained] for name in names}
    return correlations(columns, [one.rungs[0].damage.kl for one in trained])


def correlations(columns: Mapping[str, Sequence[float]], outcome: Sequence[float]) -> dict[str, float]:
    """Spearman's ρ of each column with the outcome; empty for fewer than three, columns without variation left out."""
    after = _ranks(outcome)
    if len(outcome) < 3 or not after.std():
        return {}
    ranks = {name: _ranks(values) for name, values in columns.items()}
    return {name: float(np.corrcoef(rank, after)[0, 1]) for name, rank in ranks.items() if rank.std()}


def fitted_on_others(columns: Mapping[str, Sequence[float]], outcome: Sequence[float]) -> list[float]:
    """What a ridge regression on the ranks of all columns foretells of each outcome's rank from the others alone."""
    features = np.stack([_ranks(values) for values in columns.values()], axis=1) / len(outcome)
    features = features - features.mean(0)
    # Leaving one out changes a ridge's prediction by its residual: y_i - (y_i - f_i) / (1 - H_ii), H = X (XᵀX + λ)⁻¹ Xᵀ
    gram = features.T @ features
    hat = features @ np.linalg.solve(gram + _RIDGE * np.eye(len(gram)), features.T) + 1.0 / len(outcome)
    after = _ranks(outcome)
    return list(after - (after - hat @ after) / (1.0 - np.diag(hat)))


def _lost(parts: Sequence[float], left: float) -> float:
    """The share of the importance of equal parts, the highest first, that goes where the share ``left`` stays."""
    edges = np.linspace(0.0, 1.0, len(parts) + 1)
    stays = float(np.interp(left, edges, np.concatenate([[0.0], np.cumsum(parts)])))
    return 1.0 - stays / max(sum(parts), 1e-30)


def _ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 0; equal values share the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts) - 1
    return (last - (counts - 1) / 2)[group]
