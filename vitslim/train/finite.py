"""Numbers that no training and no measurement can go on with: NaN and infinity."""

import torch
from torch import nn

_NAMED = 3


def not_finite(model: nn.Module) -> list[str]:
    """Names of the parameters that hold NaN or infinity, in the model's order; on the meta device nothing is known."""
    named = [(name, one) for name, one in model.named_parameters() if one.numel() and not one.is_meta]
    if not named:
        return []
    with torch.no_grad():
        # One number per parameter comes back from the device, all of them at once. x * 0 is NaN where x is not finite.
        found = torch.stack([(parameter * 0).sum().float() for _, parameter in named])
    return [name for (name, _), is_good in zip(named, found.isfinite().tolist(), strict=True) if not is_good]


def weights_error(model: nn.Module, role: str) -> str | None:
    """Why a model of such weights is of no use, as a sentence; None where all of them are finite.

    Args:
        role: what the model is here: "student", "teacher".
    """
    bad = not_finite(model)
    if not bad:
        return None
    others = f" (and {len(bad) - _NAMED} more)" if len(bad) > _NAMED else ""
    verb = "holds" if len(bad) == 1 else "hold"
    return f"the {role}'s {', '.join(bad[:_NAMED])}{others} {verb} NaN or infinity; give weights that are finite"
