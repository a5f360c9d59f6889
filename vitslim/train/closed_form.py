"""Closed-form starts: linear layers of new and narrowed modules solved for, layer by layer from the front.

Each layer reads what the student itself computes, its front being fitted already, and is to lead it back to the dense
model's stream. No labels are needed and no gradient is computed.

In one trial on the built-in model (a prototype, one seed, 2000 images, 90.7 % dense) the stream was the best target
where much was missing: a quarter of every MLP started at 88.0 % with it, at 86.1 % where the layer was to give what the
dense block makes of the student's tokens. For half MLPs all targets were alike (90.0 %); for half of the heads the mean
of both was better than either (43.8 % against 42.0 and 31.0 %).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitslim.models import Context, entry
from vitslim.trunk import FitBatch, Regression, Step, Stream, Trunk, trunk_of
from vitslim.trunk.axes import AxisModule

# Times the mean of the diagonal: hidden channels that barely move would get huge weights, which training then fights.
# 1e-4 to 1e-1 started a stand-in of four blocks within half a point of each other, in one trial.
RIDGE = 1e-3


@torch.no_grad()
def fit_in_closed_form_(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Float[Tensor, "b c h w"]],
    *,
    known: Sequence[Sequence[Tensor]] | None = None,
    start: int = 0,
) -> dict[int, tuple[float, float]]:
    """Set every layer whose best weights are known to them.

    The tokens of all batches are kept and taken through the student step by step, so that no step runs more than a few
    times for each image: memory grows with the images, by one set of tokens each.

    Args:
        student: a converted model in evaluation mode, changed in place.
        teacher: the dense model that it was made from, on the same device.
        known: for each batch what enters each block of the teacher, and what leaves the last, where that is kept.
        start: the steps before it are the teacher's own blocks, and are not run where ``known`` is given.

    Returns:
        For each step with such layers their summed relative squared error before and after (1 is as bad as a
        constant), on the images that they were fitted to.
    """
    trunk = trunk_of(student)
    fitted = [index for index, step in enumerate(trunk.all_steps()) if _is_fitted(step)]
    if not fitted:
        return {}
    given = enumerate(batches)
    first = 0 if known is None else start
    running = [
        _Running.start(student, trunk, teacher, images, None if known is None else known[number], first)
        for number, images in given
    ]
    found: dict[int, tuple[float, float]] = {}
    # Nothing is read behind the last of them.
    for index, step in list(enumerate(trunk.all_steps()))[first : fitted[-1] + 1]:
        errors = [pair for axis in (step.attention, step.mlp) for pair in _fit_axis_(trunk, step, index, axis, running)]
        if errors:
            found[index] = (sum(before for before, _ in errors), sum(after for _, after in errors))
        for batch in running:
            batch.advance(trunk, step, index)
    return found


@dataclass
class _Running:
    """One batch on its way through the student."""

    tokens: Tensor
    stream: Stream
    contexts: list[Context]
    dense_tokens: Tensor
    dense_blocks: list[nn.Module]
    dense_contexts: list[Context]
    known: Sequence[Tensor] | None

    @classmethod
    def start(
        cls,
        student: nn.Module,
        trunk: Trunk,
        teacher: nn.Module,
        images: Tensor,
        known: Sequence[Tensor] | None,
        first: int,
    ) -> _Running:
        dense, own = entry(teacher, images), entry(student, images)
        blocks: list[nn.Module] = list(teacher.blocks)  # pyright: ignore[reportArgumentType]
        tokens, reached = (own.tokens, dense.tokens) if known is None or not first else (known[first], known[first])
        return cls(tokens, trunk.start(tokens), own.contexts, reached, blocks, dense.contexts, known)

    def advance(self, trunk: Trunk, step: Step, index: int) -> None:
        """Past a step; the teacher to the block of the next one."""
        self.tokens, self.stream = trunk.take(step, self.tokens, self.stream, self.contexts[index])
        after = [later.plan.block for later in trunk.all_steps()[index + 1 : index + 2]]
        if self.known is not None:
            self.dense_tokens = self.known[after[0] if after else step.plan.block]
            return
        for block in range(step.plan.block, after[0] if after else step.plan.block):
            self.dense_tokens = self.dense_blocks[block](self.dense_tokens, **self.dense_contexts[block])

    def seen_by(self, trunk: Trunk, step: Step, index: int, axis: AxisModule) -> FitBatch:
        """What a module of the step reads of this batch."""
        seen: list[tuple[object, ...]] = []
        handle = axis.register_forward_pre_hook(lambda _, args: seen.append(args))
        try:
            _, stream = trunk.take(step, self.tokens, self.stream, self.contexts[index])
        finally:
            handle.remove()
        bound, tokens, *rest = seen[-1]
        return FitBatch(
            bound,  # pyright: ignore[reportArgumentType]
            tokens,  # pyright: ignore[reportArgumentType]
            rest[0] if rest else stream,  # pyright: ignore[reportArgumentType]
            step.plan.block,
            self.dense_tokens,
            self.dense_blocks,
            self.dense_contexts,
            self.known,
        )


def _is_fitted(step: Step) -> bool:
    return any(type(axis).regressions is not AxisModule.regressions for axis in (step.attention, step.mlp))


def _fit_axis_(
    trunk: Trunk, step: Step, index: int, axis: AxisModule, running: Sequence[_Running]
) -> list[tuple[float, float]]:
    if type(axis).regressions is AxisModule.regressions:
        return []
    # What it reads does not depend on what is chosen in it.
    batches = [one.seen_by(trunk, step, index, axis) for one in running]
    if type(axis).measure is not AxisModule.measure:
        measured = [sums for sums in map(axis.measure, batches) if sums is not None]
        if measured:
            axis.choose_(torch.stack(measured).sum(0), batches[-1])
    equations: list[NormalEquations] = []
    for batch in batches:
        regressions = axis.regressions(batch)
        equations = equations or [NormalEquations.of(regression) for regression in regressions]
        for sums, regression in zip(equations, regressions, strict=True):
            sums.add_(regression)
    return [one.solve_() for one in equations]


@dataclass
class NormalEquations:
    """XᵀX, XᵀY and YᵀY of one layer over all samples so far, in float64; X has a column of ones for a bias."""

    layer: nn.Linear
    gram: Float[Tensor, "f1 f1"]
    cross: Float[Tensor, "f1 d"]
    squares: Float[Tensor, " d"]
    sums: Float[Tensor, " d"]

    @classmethod
    def of(cls, regression: Regression) -> NormalEquations:
        """Empty ones for a layer."""
        layer = regression.layer
        features, outputs = layer.in_features + 1, layer.out_features
        new = regression.inputs.new_zeros
        kind = torch.float64
        return cls(
            layer,
            new(features, features, dtype=kind),
            new(features, outputs, dtype=kind),
            new(outputs, dtype=kind),
            new(outputs, dtype=kind),
        )

    def add_(self, regression: Regression) -> None:
        """Add the samples of a batch."""
        # The products of one batch in float32, half the time: their error is far below the ridge.
        inputs, targets = regression.inputs.float(), regression.targets.float()
        inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)
        self.gram += inputs.T @ inputs
        self.cross += inputs.T @ targets
        self.squares += targets.double().square().sum(0)
        self.sums += targets.double().sum(0)

    def solve_(self) -> tuple[float, float]:
        """Set the layer; its relative squared error before and after."""
        before = self._error()
        size = len(self.gram) - 1 if self._bias is None else len(self.gram)
        gram = self.gram[:size, :size]
        # W = (XᵀX + λI)⁻¹ XᵀY, the bias left out of the penalty
        penalty = torch.full_like(gram[0], RIDGE) * self.gram.diagonal()[:-1].mean().clamp_min(1e-30)
        if self._bias is not None:
            penalty[-1] = 0.0
        solution = torch.linalg.solve(gram + penalty.diag(), self.cross[:size])
        self.layer.weight.copy_(solution[: self.layer.in_features].T)
        if self._bias is not None:
            self._bias.copy_(solution[-1])
        return before, self._error()

    @property
    def _bias(self) -> Tensor | None:
        return self.layer.bias

    def _error(self) -> float:
        bias = self.cross.new_zeros(1, self.cross.shape[1]) if self._bias is None else self._bias.double()[None]
        weight = torch.cat([self.layer.weight.double().T, bias])
        # Σ ‖y - Wᵀx‖² = YᵀY - 2 Wᵀ XᵀY + Wᵀ XᵀX W
        left = self.squares.sum() - 2 * (weight * self.cross).sum() + (weight * (self.gram @ weight)).sum()
        spread = (self.squares - self.sums.square() / self.gram[-1, -1].clamp_min(1.0)).sum()
        return float(left.clamp_min(0.0) / spread.clamp_min(1e-12))
