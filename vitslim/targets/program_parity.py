"""Whether a file of torch's own computes what its model computes, before it is kept."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vitslim.errors import CheckFailedError, ConfigError
from vitslim.runtime import Precision, working_copy
from vitslim.shapes import Result
from vitslim.targets.parity.distance import distance
from vitslim.targets.parity.tolerances import TOLERANCES
from vitslim.trunk import is_converted, trunk_of


class Comparison(Result):
    """The file against the model in float32 at one batch size; ``tolerance`` bounds ``max_abs``."""

    batch: int
    max_abs: float
    cosine: float
    tolerance: float


def compared(
    model: nn.Module,
    forward: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    precision: Precision,
    batches: Sequence[int] = (1, 3),
) -> list[Comparison]:
    """Run images through both, at more than one batch size: a frozen batch shows at the second only.

    Args:
        model: stays as it is; a copy runs on the CPU in float32.
        forward: the file, loaded back.
        images: normalised as the model expects.
        precision: of the file; ``TOLERANCES`` has its limits.

    Raises:
        ConfigError: fewer images than the largest batch.
        CheckFailedError: one output is not finite, or lies further off than the limit.
    """
    if len(images) < max(batches):
        raise ConfigError(f"{len(images)} images were given for a batch of {max(batches)}")
    reference = working_copy(model).cpu().float()
    chooses = is_converted(model) and trunk_of(model).chooses
    found: list[Comparison] = []
    with torch.no_grad():
        for batch in batches:
            given = images[:batch].float().cpu()
            found.append(_compare(reference(given), forward(given).float().cpu(), precision, chooses))
    return found


def _compare(expected: Tensor, given: Tensor, precision: Precision, chooses: bool) -> Comparison:
    batch = len(expected)
    if given.shape != expected.shape:
        raise CheckFailedError(f"batch {batch}: the file gives {tuple(given.shape)}, the model {tuple(expected.shape)}")
    limits = TOLERANCES[precision]
    off = distance(expected, given, limits, classes=False, chooses=chooses)
    check = Comparison(batch=batch, max_abs=off.max_abs, cosine=off.cosine, tolerance=limits.relative * off.scale)
    if off.not_finite or off.reference_not_finite:
        raise CheckFailedError(f"batch {batch}: the file or its model gives NaN or infinity")
    if check.max_abs > check.tolerance and not off.is_flipped_choice:
        raise CheckFailedError(
            f"batch {batch}: the file differs from the model by {check.max_abs:.3g}, more than {check.tolerance:.3g} "
            f"({limits.relative:g} of the outputs' scale {off.scale:.3g} in {precision})"
        )
    return check
