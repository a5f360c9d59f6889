"""How far the outputs of a file lie from those of its model, image by image."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vitslim.targets.parity.tolerances import Tolerance

# Where a model chooses tokens or keys, two candidates at the edge of the choice can be closer than rounding: one is
# taken in torch, the other in the file. That moves the outputs of the image by 1.2 % of the scale (the built-in
# Sparsifiner student in fp16) and keeps their direction. A cosine of 0.999 is an angle of 2.6 degrees, 4.5 % of the
# length; as much is granted along it. With random weights 3 of 32 images flip (DeiT-T, Sparsifiner in fp32), while
# other errors (scaled, permuted or lost weights) move every image: a quarter lies between. What rounding does to every
# image comes on top.
_FLIP_COSINE = 0.999
_FLIP_RELATIVE = 0.045
_FLIP_SHARE = 0.25


@dataclass(frozen=True)
class Distance:
    """What ``distance`` found over n images.

    Args:
        max_abs: largest difference between two finite outputs; ``mean_abs`` their mean.
        cosine: the least over the images.
        changed: images whose best class changed; ``ties`` of them were a tie before.
        not_finite: outputs of the file that are NaN or infinite; ``reference_not_finite`` images for which the model
            itself gives such.
        scale: largest magnitude among the model's finite outputs.
        exceeding: images outside of the limits.
        is_flipped_choice: the model chooses, these images are few, keep their class, and lie as near as a choice that
            fell otherwise leaves them.
    """

    max_abs: float
    mean_abs: float
    cosine: float
    changed: int
    ties: int
    not_finite: int
    reference_not_finite: int
    scale: float
    exceeding: int
    is_flipped_choice: bool


def distance(expected: Tensor, given: Tensor, limits: Tolerance, *, classes: bool, chooses: bool) -> Distance:
    """Compare the outputs of n images.

    Args:
        expected: of the model, (n, outputs).
        given: of the file, of the same shape.
        limits: how far each image may lie off.
        classes: whether the largest output names a class.
        chooses: whether the model chooses tokens or keys.
    """
    count = len(expected)
    usable = expected.isfinite() & given.isfinite()
    expected_is_finite = expected.isfinite()
    scale = float(expected[expected_is_finite].abs().max()) if bool(expected_is_finite.any()) else 0.0
    difference = torch.where(usable, given - expected, 0.0).abs()
    worst, cosine = difference.amax(dim=1), _cosines(expected, given)
    changed, ties = _changed_classes(expected, given, limits.tie * scale) if classes else _none(count)
    is_whole = usable.all(dim=1)
    outside = (worst > limits.relative * scale) | (cosine < limits.cosine) | ~is_whole
    is_near = (worst <= (limits.relative + _FLIP_RELATIVE) * scale) & (cosine >= limits.cosine - (1 - _FLIP_COSINE))
    flipped = is_near & ~(changed & ~ties) & is_whole
    exceeding = int(outside.sum())
    # Of few images one; of a single image none, since an error of all images would show on it alone too.
    granted = min(max(1, int(_FLIP_SHARE * count)), count - 1)
    return Distance(
        max_abs=float(difference.max()),
        mean_abs=float(difference[usable].mean()) if bool(usable.any()) else 0.0,
        cosine=float(cosine.min()),
        changed=int(changed.sum()),
        ties=int(ties.sum()),
        not_finite=int((~given.isfinite()).sum()),
        reference_not_finite=int((~expected_is_finite.all(dim=1)).sum()),
        scale=scale,
        exceeding=exceeding,
        is_flipped_choice=chooses and 0 < exceeding <= granted and bool(flipped[outside].all()),
    )


def _cosines(expected: Tensor, given: Tensor) -> Tensor:
    expected, given = (torch.where(one.isfinite(), one, 0.0).double() for one in (expected, given))
    # Two rows of zeros are alike; torch calls their cosine 0.
    both_zero = (expected == 0).all(dim=1) & (given == 0).all(dim=1)
    return torch.where(both_zero, 1.0, torch.cosine_similarity(expected, given, dim=1))


def _changed_classes(expected: Tensor, given: Tensor, tie: float) -> tuple[Tensor, Tensor]:
    """Which images changed their best class, and which of these were closer than ``tie`` before."""
    if expected.shape[1] < 2:
        return _none(len(expected))
    changed = expected.argmax(dim=1) != given.argmax(dim=1)
    best, second = expected.topk(2, dim=1).values.unbind(dim=1)
    return changed, changed & (best - second < tie)


def _none(count: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
