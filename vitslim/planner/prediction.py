"""The time of any plan, put together from the measured times of a few whole models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from vitslim.errors import CheckFailedError, ConfigError
from vitslim.planner.times import NO_MLP, NO_MLP_SMALL, SHORT, SHORT_SMALL, SMALL, SMALLER, ProbeTimes
from vitslim.plans import ModelPlan, NoAttention, NoMlp, StepPlan
from vitslim.plans.place import Place, places

_PLAIN = ("dense", "all", "narrow", "none", "own")
"""Kinds of choices that are priced by tokens and widths alone."""


class StepTimes:
    """Predicts the time of a plan, as a share of the dense model's.

    t = b(patches) + r(width) Σ_l [A(n_l) - a(heads_l, n_l) + M(m_l) - w(neurons_l, m_l)] + Σ_l e(choices_l)

    with b what is outside the steps, r how far a narrower stream shrinks them, n and m the tokens in attention and MLP,
    A and M measured, a and w what fewer heads and neurons save, e what a choice of another kind takes beyond the dense
    one: of tokens the same however many they are, for most of it goes to calls, of other kinds in proportion to them.
    """

    def __init__(self, dense: ModelPlan, probes: ProbeTimes) -> None:
        plans = {name: ModelPlan.model_validate(plan) for name, plan in probes.plans.items()}
        shares = probes.shares
        missing = [name for name in (SHORT, NO_MLP) if name not in shares]
        if missing:
            reasons = "; ".join(probes.skipped.get(name, "not measured") for name in missing)
            raise CheckFailedError(f"the probes {' and '.join(missing)} could not be timed: {reasons}")
        depth, block = dense.depth, dense.model.blocks[0]
        if depth < 3:
            raise ConfigError(
                f"the time of a step is that of {depth} steps less that of two; wanted three blocks or more"
            )
        self._full = dense.model.prefix + dense.patches
        step = (1.0 - shares[SHORT]) / (depth - 2)
        self._base = [(float(dense.patches), max(0.0, 1.0 - depth * step))]
        if SMALL in shares and SHORT_SMALL in shares:
            in_steps = (shares[SMALL] - shares[SHORT_SMALL]) * depth / (depth - 2)
            self._base.insert(0, (float(plans[SMALL].patches), max(0.0, shares[SMALL] - in_steps)))

        def per_step(name: str) -> tuple[float, float]:
            plan = plans[name]
            return float(plan.model.prefix + plan.patches), (shares[name] - self._outside(plan)) / depth

        sized = [per_step(name) for name in shares if name.startswith("tokens ")]
        self._steps = sorted([*sized, (float(self._full), step)])
        bare = [per_step(name) for name in (NO_MLP, NO_MLP_SMALL) if name in shares]
        self._bare = sorted(bare)
        self._neurons = _Savings.of("neurons ", plans, shares, lambda one: one.mlp.hidden(block.hidden) / block.hidden)
        self._heads = _Savings.of("heads ", plans, shares, lambda one: one.attention.heads(block.heads) / block.heads)
        # Products with the stream's channels take most of a step, so that it shrinks as a whole.
        narrowed = [
            (float(plans[name].width or 0), (shares[name] - self._outside(dense)) / (1.0 - self._outside(dense)))
            for name in shares
            if name.startswith("width ")
        ]
        self._width = sorted([*narrowed, (float(dense.model.width), 1.0)])
        self._extra: dict[tuple[str, ...], float] = {}
        for name in shares:
            if name.startswith("method "):
                self._learn(plans[name], shares[name])

    def predict(self, plan: ModelPlan) -> float | None:
        """The plan's time as a share of the dense one's; ``None`` where it has choices that no probe had."""
        if plan.width is not None and len(self._width) == 1:
            return None
        total, narrow = self._outside(plan), _line(plan.channels, self._width)
        for at in places(plan):
            total += narrow * self._plain(at)
            for kind in _unknown(at.step):
                if kind not in self._extra:
                    return None
                total += self._extra[kind] * self._scale(kind, at)
        return total

    def _learn(self, plan: ModelPlan, share: float) -> None:
        """Set what the choices of one more method take, from one plan with them."""
        found = list(places(plan))
        left = share - self._outside(plan) - sum(self._plain(at) for at in found)
        new: dict[tuple[str, ...], float] = {}
        for at in found:
            for kind in _unknown(at.step):
                if kind in self._extra:
                    left -= self._extra[kind] * self._scale(kind, at)
                else:
                    new[kind] = new.get(kind, 0.0) + self._scale(kind, at)
        self._extra |= {kind: left / sum(new.values()) for kind in new}

    def _plain(self, at: Place) -> float:
        """A step whose choices are priced as if of a plain kind."""
        dense, step = at.dense_block, at.step
        time = 0.0
        if not isinstance(step.attention, NoAttention):
            tokens, width = at.tokens_in_attention, step.attention.heads(dense.heads) / dense.heads
            time += max(0.0, self._attention(tokens) - self._heads.at(tokens, width))
        if not isinstance(step.mlp, NoMlp):
            tokens, width = at.tokens_in_mlp, step.mlp.hidden(dense.hidden) / dense.hidden
            whole = self._tower(tokens) - self._attention(tokens)
            time += max(0.0, whole - self._neurons.at(tokens, width))
        return time

    def _scale(self, kind: tuple[str, ...], at: Place) -> float:
        return 1.0 if kind[0] == "tokens" else at.tokens_in_attention / self._full

    def _outside(self, plan: ModelPlan) -> float:
        return max(0.0, _line(plan.patches, self._base))

    def _tower(self, tokens: int) -> float:
        return _line(tokens, self._steps)

    def _attention(self, tokens: int) -> float:
        if len(self._bare) == 1:
            return self._bare[0][1] * tokens / self._bare[0][0]
        return _line(tokens, self._bare)


@dataclass(frozen=True)
class _Savings:
    """What one step saves where a part of it is narrower: linear in the width, and in the number of tokens.

    Args:
        full, small: (width, saving) with all tokens and with fewer, sorted; ``small`` is empty where nothing was
            measured there, and what is saved is then in proportion to the tokens.
        tokens: how many these are.
    """

    full: list[tuple[float, float]]
    small: list[tuple[float, float]]
    tokens: tuple[float, float]

    @classmethod
    def of(
        cls,
        prefix: str,
        plans: Mapping[str, ModelPlan],
        shares: Mapping[str, float],
        width: Callable[[StepPlan], float],
    ) -> _Savings:
        """Out of the probes whose names begin so."""
        lines: list[list[tuple[float, float]]] = []
        tokens: list[float] = []
        for place, dense in (("", 1.0), (SMALLER, shares.get(SMALL, 0.0))):
            found = [(plans[name], shares[name]) for name in shares if name.startswith(place + prefix) and dense]
            saved = [(width(plan.steps[0]), (dense - share) / plan.depth) for plan, share in found]
            lines.append(sorted([(1.0, 0.0), *saved]) if saved else [])
            tokens.append(next((float(plan.model.prefix + plan.patches) for plan, _ in found), 0.0))
        return cls(lines[0] or [(1.0, 0.0)], lines[1], (tokens[0], tokens[1]))

    def at(self, tokens: int, width: float) -> float:
        """The saving, as a share of the dense model's time."""
        if width == 1.0 or len(self.full) == 1:
            return 0.0
        saved, (full, small) = _line(width, self.full), self.tokens
        if not self.small:
            return saved * tokens / full
        return max(0.0, _line(tokens, [(small, _line(width, self.small)), (full, saved)]))


def _unknown(step: StepPlan) -> list[tuple[str, ...]]:
    """What a step has beyond the plain kinds: axis, kind, and which of its switches are on."""
    return [
        (choice.axis, choice.kind, *(name for name, value in choice.model_dump().items() if value is True))
        for choice in step.choices
        if choice.kind not in _PLAIN
    ]


def _line(x: float | int, points: Sequence[tuple[float, float]]) -> float:
    """Linear between points sorted by x, and beyond them in the direction of the outermost two."""
    if len(points) == 1:
        return points[0][1] * (x / points[0][0])
    right = next((index for index, (at, _) in enumerate(points) if at >= x), len(points) - 1)
    (x0, y0), (x1, y1) = points[max(right, 1) - 1], points[max(right, 1)]
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def prediction_errors(times: StepTimes, plans: Iterable[ModelPlan], measured: Iterable[float]) -> list[float]:
    """Relative errors of the predicted times of measured plans; those without a prediction are left out."""
    found = ((times.predict(plan), share) for plan, share in zip(plans, measured, strict=True))
    return [predicted / share - 1.0 for predicted, share in found if predicted is not None]
