"""A share of the tokens for each step: where tokens are merged or pruned, and how many, by what that does alone.

The plans are those of DiffRate (Chen et al., "Differentiable Compression Rate for Efficient Vision Transformers",
ICCV 2023, arXiv 2305.17997): every block has a rate of its own. There the rates are learned by gradients; here the best
sum of measured damages is solved for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vitslim.errors import VitslimError
from vitslim.methods import METHODS, planned
from vitslim.planner.damage import DamageMeter
from vitslim.planner.search import Price
from vitslim.plans import ModelPlan, TokenChoice, check
from vitslim.progress import Progress, ProgressCallback, silent

_MEASURED = (0.75, 0.5, 0.3)
"""Shares of the patches whose damage is measured; in between it is taken to be linear."""
SHARES = np.round(np.arange(1.0, 0.24, -0.05), 2)
"""Shares that a step may leave."""
_GRID = 500
"""Parts into which the saving is divided that a limit asks for."""


@dataclass(frozen=True)
class Rates:
    """One rule on tokens that a step can have whatever the others have, and what it does alone.

    Args:
        method: whose rule it is.
        rule: as a plan has it; its ``keep`` is the share of the patches that is left behind the step.
        harms: divergence where patches are taken away at one step alone, by step and by what is left (``SHARES``),
            nats; infinite where that is not possible.
    """

    method: str
    rule: TokenChoice
    harms: Float[np.ndarray, "depth shares"]

    def placed(self, dense: ModelPlan, shares: Iterable[tuple[int, float]]) -> ModelPlan:
        """The dense plan with the rule in some steps, each with the share that it leaves."""
        return dense.with_steps(
            {index: dense.steps[index].but(tokens=_with(self.rule, keep)) for index, keep in shares}
        )


def measure_rates(
    dense: ModelPlan, price: Price, meter: DamageMeter, progress: ProgressCallback = silent
) -> list[Rates]:
    """Measure every rule on tokens that saves something alone, in each step and with several shares."""
    rules = dict(_rules(dense, price))
    found: list[Rates] = []
    done, total = 0, len(rules) * dense.depth * len(_MEASURED)
    for method, rule in rules.items():
        one = Rates(method, rule, np.full((dense.depth, len(SHARES)), np.inf))
        for index in range(dense.depth):
            known = [(1.0, 0.0)]
            for share in _MEASURED:
                done += 1
                plan = _reduced(one, dense, index, share)
                if plan is not None:
                    known.append((share, max(meter(plan).kl, known[-1][1])))
                progress(Progress("damage of fewer tokens", done, total, "plans", {"kl": known[-1][1]}))
            shares, harms = zip(*reversed(known), strict=True)
            one.harms[index] = np.where(shares[0] <= SHARES, np.interp(SHARES, shares, harms), np.inf)
            # As far below the last measured share as the grid goes, the damage is taken to grow on.
            if len(known) > len(_MEASURED):
                slope = (harms[0] - harms[1]) / (shares[1] - shares[0])
                below = shares[0] > SHARES
                one.harms[index, below] = harms[0] + slope * (shares[0] - SHARES[below])
        found.append(one)
    return found


def best_rates(dense: ModelPlan, rates: Rates, price: Price, limit: float) -> tuple[ModelPlan, float] | None:
    """The shares with the least sum of damages that meet a limit; ``None`` for none.

    A dynamic program over steps and shares. To go from the share j to k in step l costs h_l(k) - h_l(j), with h the
    damage of that step alone; to have the share k behind it saves s_l(k) = P_{l+1}(k) - P_l(k), with P_l the price of
    a plan that has the share from step l on, and each step that takes tokens away takes something itself.

    Args:
        limit: as a share of the dense model's price.

    Returns:
        The plan and its sum, in nats.
    """
    whole = price(dense)
    saved = None if whole is None else _savings(dense, rates, price, whole)
    if whole is None or saved is None or whole <= limit:
        return None
    extra = _price_of_one_more(dense, rates, price, whole, saved)
    # Prices add up only nearly: a little more is asked for where the plan as a whole does not meet the limit.
    solved = (_solved(rates, saved, extra, more * (whole - limit)) for more in (1.0, 1.02, 1.05, 1.1))
    found = (_first_within(dense, rates, price, limit, sums, taken) for sums, taken in solved)
    return next((one for one in found if one is not None), None)


def _solved(
    rates: Rates, saved: np.ndarray, extra: float, wanted: float
) -> tuple[Float[np.ndarray, "shares levels"], list[np.ndarray]]:
    """The least sums for every share behind the last step and every part of a saving, and where each came from."""
    unit, levels = wanted / _GRID, np.arange(_GRID + 1)
    sums = np.full((len(SHARES), _GRID + 1), np.inf)
    sums[0, 0] = 0.0
    taken: list[np.ndarray] = []
    for index in range(len(saved)):
        table, origins = np.full_like(sums, np.inf), np.zeros((*sums.shape, 2), int)
        for k, share in enumerate(SHARES):
            for j in range(k + 1):
                # A step takes half of its tokens at most, as pairs can be merged.
                if share < SHARES[j] / 2 or not np.isfinite(rates.harms[index, k]):
                    continue
                harm = rates.harms[index, k] - rates.harms[index, j]
                # What the first step with fewer tokens takes for that is in what is saved behind it.
                units = max(0, int((saved[index, k] - (extra if 0 < j < k else 0.0)) / unit))
                reached = np.minimum(levels + units, _GRID)
                # Where several levels lead to the last one, the best of them stays: the others are written first.
                order = np.argsort(-sums[j], kind="stable")
                better = sums[j, order] + harm < table[k, reached[order]]
                at = reached[order][better]
                table[k, at] = sums[j, order][better] + harm
                origins[k, at] = np.stack([np.full(len(at), j), order[better]], axis=1)
        sums = table
        taken.append(origins)
    return sums, taken


def _first_within(
    dense: ModelPlan, rates: Rates, price: Price, limit: float, sums: np.ndarray, taken: Sequence[np.ndarray]
) -> tuple[ModelPlan, float] | None:
    """The best end of the last table whose plan as a whole is allowed and meets the limit."""
    for k in np.argsort(sums[:, -1], kind="stable"):
        if not np.isfinite(sums[k, -1]):
            break
        plan = rates.placed(dense, _traced(taken, int(k)))
        cost = None if check(plan) else price(plan)
        if cost is not None and cost <= limit:
            return plan, float(sums[k, -1])
    return None


def _traced(taken: Sequence[np.ndarray], k: int) -> list[tuple[int, float]]:
    """The steps that take tokens away on the way to an end of the last table, with what they leave."""
    found: list[tuple[int, float]] = []
    level = _GRID
    for index in range(len(taken) - 1, -1, -1):
        before, level = (int(one) for one in taken[index][k, level])
        if before < k:
            found.append((index, float(SHARES[k])))
        k = before
    return found[::-1]


def _rules(dense: ModelPlan, price: Price) -> Iterable[tuple[str, TokenChoice]]:
    """Rules of methods that can stand in any one step of the dense plan, and make it cheaper."""
    whole = price(dense)
    for name, method in METHODS.items():
        try:
            plans = [planned(method, method.config(**options), dense) for options in method.strengths(dense)[:1]]
        except VitslimError:
            continue
        rules = [step.tokens for plan in plans for step in plan.steps if step.tokens.picks]
        for rule in [one for one in rules[:1] if hasattr(one, "keep") and not one.selects]:
            alone = dense.with_steps({0: dense.steps[0].but(tokens=_with(rule, 0.5))})
            cost = None if check(alone) else price(alone)
            if cost is not None and whole is not None and cost < whole:
                yield name, rule


def _reduced(rates: Rates, dense: ModelPlan, index: int, share: float) -> ModelPlan | None:
    """The plan with a share left behind one step, half of the way in the step before where one is not enough."""
    for shares in ([(index, share)], [(index - 1, round(share**0.5, 3)), (index, share)]):
        if shares[0][0] >= 0:
            plan = rates.placed(dense, shares)
            if not check(plan):
                return plan
    return None


def _savings(dense: ModelPlan, rates: Rates, price: Price, whole: float) -> np.ndarray | None:
    """s_l(k) for each step and share."""
    prices = np.full((dense.depth + 1, len(SHARES)), whole)
    for index in range(dense.depth):
        for k, share in list(enumerate(SHARES))[1:]:
            found = price(rates.placed(dense, [(index, float(share))]))
            if found is None:
                return None
            prices[index, k] = found
    return prices[1:] - prices[:-1]


def _price_of_one_more(dense: ModelPlan, rates: Rates, price: Price, whole: float, saved: np.ndarray) -> float:
    """What a step takes for taking tokens away, beside what fewer tokens save: that of the second of two."""
    if dense.depth < 2:
        return 0.0
    first, second = 5, 10  # places in SHARES
    together = price(rates.placed(dense, [(0, float(SHARES[first])), (1, float(SHARES[second]))]))
    return 0.0 if together is None else max(0.0, together - (whole - saved[0, first] - saved[1:, second].sum()))


def _with(rule: TokenChoice, keep: float) -> TokenChoice:
    return rule.model_copy(update={"keep": keep})
