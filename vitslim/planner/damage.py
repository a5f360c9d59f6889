"""What a plan does to the model's output before it is trained: after its closed-form start, on held-out images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vitslim.plans import ModelPlan
from vitslim.shapes import Result
from vitslim.train.closed_form import fit_in_closed_form_
from vitslim.train.warm_start import dense_at_size_of
from vitslim.trunk import at_plan_size, build


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


class DamageMeter:
    """Measures plans of one dense model on the same images.

    Args:
        model: dense, on its device.
        fitted: batches of images (b, c, h, w) that closed-form starts are solved on.
        held_out: batches of images that the damage is measured on.
        labels: of these, class numbers (b,) per batch; ``None`` without.
    """

    def __init__(
        self,
        model: nn.Module,
        fitted: Sequence[Float[Tensor, "b c h w"]],
        held_out: Sequence[Float[Tensor, "b c h w"]],
        labels: Sequence[Int[Tensor, " b"]] | None = None,
    ) -> None:
        self._model = model.eval()
        self._fitted, self._held_out, self._labels = fitted, held_out, labels
        self._known: dict[str, Damage] = {}
        with torch.no_grad():
            self._dense = [model(images).float() for images in held_out]

    def __call__(self, plan: ModelPlan) -> Damage:
        """The damage of a plan, remembered."""
        key = plan.model_dump_json()
        if key not in self._known:
            student = build(plan, self._model).eval()
            images = (at_plan_size(student, batch) for batch in self._fitted)
            fit_in_closed_form_(student, dense_at_size_of(student, self._model), images)
            self._known[key] = self.of(student)
        return self._known[key]

    @torch.no_grad()
    def of(self, student: nn.Module) -> Damage:
        """The damage of a student as it is."""
        images, kl, agreement, loss = 0, 0.0, 0.0, 0.0
        for index, (batch, dense) in enumerate(zip(self._held_out, self._dense, strict=True)):
            logits = student(at_plan_size(student, batch)).float()
            images += len(batch)
            # KL = Σ_c p_c (log p_c - log q_c), p the dense model's
            kl += float(F.kl_div(logits.log_softmax(1), dense.log_softmax(1), reduction="sum", log_target=True))
            agreement += float((logits.argmax(1) == dense.argmax(1)).sum())
            if self._labels is not None:
                loss += float(F.cross_entropy(logits, self._labels[index], reduction="sum"))
        return Damage(
            kl=kl / images, agreement=agreement / images, loss=None if self._labels is None else loss / images
        )
