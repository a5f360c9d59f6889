"""How far a student is from labels or from its teacher: plain functions of tensors."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

TokenDistance = Literal["mse", "cosine"]


def ce_loss(
    logits: Float[Tensor, "b c"], targets: Int[Tensor, " b"] | Float[Tensor, "b c"], smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Cross-entropy to class numbers, or to class shares as mixup makes them.

    Args:
        smoothing: share of the target spread evenly over all classes, 0..1.
    """
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)


def kd_loss(
    logits: Float[Tensor, "b c"], teacher_logits: Float[Tensor, "b c"], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """Divergence of the student's class distribution from the teacher's, both softened by the temperature.

    Source: Hinton et al. 2015, arXiv 1503.02531, section 2.
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=-1)
    # T² KL(teacher || student): the factor keeps the gradient's size when T changes
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def token_loss(
    tokens: Float[Tensor, "b n d"], teacher_tokens: Float[Tensor, "b n d"], distance: TokenDistance = "mse"
) -> Float[Tensor, ""]:
    """How far final tokens lie apart: mean squared difference, or one minus the cosine of each pair."""
    if distance == "cosine":
        return 1 - F.cosine_similarity(tokens.float(), teacher_tokens.float(), dim=-1).mean()
    return F.mse_loss(tokens.float(), teacher_tokens.float())


def step_loss(
    outputs: list[Float[Tensor, "b n d"]], teacher_outputs: list[Float[Tensor, "b n d"]]
) -> Float[Tensor, ""]:
    """Mean over the steps of the squared difference to the teacher's output, relative to the teacher's square.

    The residual stream grows with depth; without the division the last steps would drown the first ones.
    """
    losses = [
        F.mse_loss(mine.float(), theirs.float()) / theirs.float().square().mean().clamp(min=1e-6)
        for mine, theirs in zip(outputs, teacher_outputs, strict=True)
    ]
    return sum(losses[1:], losses[0]) / len(losses)


def matching_depths(steps: int, teacher_blocks: int) -> list[int]:
    """For each student step the teacher block at the same share of the depth: the last one meets the last one."""
    return [round((step + 1) * teacher_blocks / steps) - 1 for step in range(steps)]
