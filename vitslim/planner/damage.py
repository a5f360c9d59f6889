"""What a plan does to the model's output before it is trained: after its closed-form start, on held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitslim.errors import CheckpointError
from vitslim.files import digest_of, read_json, write_json
from vitslim.models import entry, output_behind_blocks, trace
from vitslim.models.stream_width import covariances
from vitslim.plans import ModelPlan, StepPlan
from vitslim.shapes import Result
from vitslim.train.closed_form import fit_in_closed_form_
from vitslim.train.settings import resolve_precision
from vitslim.train.warm_start import dense_at_size_of, on_stream_of_
from vitslim.trunk import at_plan_size, build, trunk_of

KEPT_BYTES = 3 * 2**30
"""Of the dense model's tokens at most; with more images the front of every plan is run again."""


class Damage(Result):
    """Means over the images.

    Attributes:
        kl: divergence of the student's classes from the dense model's, nats.
        agreement: share of images, 0..1, whose best class is the dense model's.
        loss: cross-entropy to the labels, nats; ``None`` without labels.
        top1: share of images, 0..1, whose best class is the label; ``None`` without labels.
    """

    kl: float
    agreement: float
    loss: float | None = None
    top1: float | None = None


@dataclass(frozen=True)
class _Batch:
    """Images and what the dense model makes of them: what enters each block and what leaves the last, if kept."""

    images: Float[Tensor, "b c h w"]
    known: list[Tensor] | None
    logits: Float[Tensor, "b classes"]


class DamageMeter:
    """Measures plans of one dense model on the same images.

    What the dense model computes in front of the first step that a plan changes is computed once. Forwards are in bf16
    where the device has units for it, closed-form starts in fp32.

    Args:
        model: dense, on its device.
        fitted: batches of images (b, c, h, w) that closed-form starts are solved on.
        held_out: batches of images that the damage is measured on.
        labels: of these, class numbers (b,) per batch; ``None`` without.
        path: JSON file that keeps what is measured; ``None``: memory alone.
    """

    def __init__(
        self,
        model: nn.Module,
        fitted: Sequence[Float[Tensor, "_ c h w"]],
        held_out: Sequence[Float[Tensor, "_ c h w"]],
        labels: Sequence[Int[Tensor, " _"]] | None = None,
        path: Path | None = None,
    ) -> None:
        self._model, self._labels, self._path = model.eval(), labels, path
        self._device = next(model.parameters()).device
        self._reduced = resolve_precision("auto", self._device) == "bf16"
        self._keeps = _bytes_of(model, [*fitted, *held_out]) <= KEPT_BYTES
        self._fitted = [self._dense_pass(images, reduced=False) for images in fitted]
        self._held_out = [self._dense_pass(images, reduced=self._reduced) for images in held_out]
        self._measured = _read(path)
        self._covariances: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}

    def __call__(self, plan: ModelPlan) -> Damage:
        """The damage of a plan, remembered."""
        key = digest_of(plan)
        if key not in self._measured:
            self._measured[key] = self._measure(plan)
            if self._path is not None:
                document = {name: one.model_dump(mode="json") for name, one in self._measured.items()}
                write_json(self._path, document)
        return self._measured[key]

    @property
    def images(self) -> int:
        """How many damage is measured on."""
        return sum(len(batch.images) for batch in self._held_out)

    @property
    def dense(self) -> Damage:
        """Of the dense model itself: no divergence, its own loss and accuracy."""
        return self._compare([batch.logits for batch in self._held_out])

    def of(self, student: nn.Module) -> Damage:
        """The damage of a student as it is."""
        return self._compare([self._logits(student, batch, 0) for batch in self._held_out])

    def _measure(self, plan: ModelPlan) -> Damage:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            student = build(plan, self._model).eval()
        start = _unchanged(plan) if self._keeps else 0
        teacher = dense_at_size_of(student, self._model)
        images = [at_plan_size(student, batch.images) for batch in self._fitted]
        if plan.width is not None:
            if plan.image_size not in self._covariances:
                self._covariances[plan.image_size] = covariances(teacher, images)
            teacher = on_stream_of_(student, teacher, self._covariances[plan.image_size])
        is_of_one_size = teacher is self._model and self._keeps
        known = [batch.known or [] for batch in self._fitted] if is_of_one_size else None
        fit_in_closed_form_(student, teacher, images, known=known, start=start)
        return self._compare([self._logits(student, batch, start) for batch in self._held_out])

    @torch.no_grad()
    def _dense_pass(self, images: Tensor, *, reduced: bool) -> _Batch:
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=reduced):
            if not self._keeps:
                return _Batch(images, None, self._model(images).float())
            found = trace(self._model, images)
        return _Batch(images, [*found.block_inputs, found.block_outputs[-1]], found.logits.float())

    @torch.no_grad()
    def _logits(self, student: nn.Module, batch: _Batch, start: int) -> Tensor:
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._reduced):
            if batch.known is None or not start:
                return student(at_plan_size(student, batch.images)).float()
            trunk, contexts = trunk_of(student), entry(student, batch.images).contexts
            tokens = batch.known[start]
            stream = trunk.start(tokens)
            for index, step in list(enumerate(trunk.all_steps()))[start:]:
                tokens, stream = trunk.take(step, tokens, stream, contexts[index])
            if stream.token_state is not None:
                tokens = stream.token_state.restore(tokens)
            return output_behind_blocks(student, batch.images, tokens).float()

    def _compare(self, outputs: Sequence[Tensor]) -> Damage:
        images, sums = 0, dict.fromkeys(("kl", "agreement", "loss", "top1"), 0.0)
        for index, (batch, logits) in enumerate(zip(self._held_out, outputs, strict=True)):
            images += len(logits)
            chosen, dense = logits.argmax(1), batch.logits
            # KL = Σ_c p_c (log p_c - log q_c), p the dense model's
            kl = F.kl_div(logits.log_softmax(1), dense.log_softmax(1), reduction="sum", log_target=True)
            sums["kl"] += float(kl)
            sums["agreement"] += float((chosen == dense.argmax(1)).sum())
            if self._labels is not None:
                sums["loss"] += float(F.cross_entropy(logits, self._labels[index], reduction="sum"))
                sums["top1"] += float((chosen == self._labels[index]).sum())
        means = {name: value / images for name, value in sums.items()}
        without = {"loss": None, "top1": None} if self._labels is None else {}
        return Damage.model_validate({**means, **without})


def _unchanged(plan: ModelPlan) -> int:
    """How many steps at the front are the dense model's own, less the last of them: the next may read what it left."""
    if plan.image_size != plan.model.image_size or plan.width is not None:
        return 0
    changed = (index for index, step in enumerate(plan.steps) if step != StepPlan(block=index))
    return max(0, next(changed, plan.depth) - 1)


def _bytes_of(model: nn.Module, batches: Sequence[Tensor]) -> int:
    """Of the tokens between all blocks."""
    blocks: Sequence[nn.Module] = list(model.blocks)  # pyright: ignore[reportArgumentType]
    entered = entry(model, batches[0][:1]).tokens
    return (len(blocks) + 1) * entered[0].numel() * 4 * sum(len(images) for images in batches)


def _read(path: Path | None) -> dict[str, Damage]:
    try:
        document = {} if path is None else read_json(path)
        return {name: Damage.model_validate(one) for name, one in document.items()}
    except (CheckpointError, ValueError):
        return {}
