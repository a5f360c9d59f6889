"""Which tokens a timm classifier reads."""

from typing import Any, cast

from torch import nn

from vitslim.errors import UnsupportedModelError

_POOLS = ("token", "avg", "avgmax", "max")


def reads_class_token_alone(model: nn.Module) -> bool:
    """Whether nothing but the class token (and a distillation token) reaches the output."""
    return getattr(model, "global_pool", None) == "token" and getattr(model, "attn_pool", None) is None


def read_patch_mean_(model: nn.Module) -> nn.Module:
    """Let the classifier read the mean of all patch tokens, normalised after the mean.

    It is the form that timm builds for ``global_pool="avg"``: the final norm goes from ``norm`` to ``fc_norm``, its
    weights with it.

    Raises:
        UnsupportedModelError: the classifier reads its tokens in a way of its own.
    """
    classifier = cast(Any, model)
    if hasattr(model, "head_dist"):
        raise UnsupportedModelError(
            "a distilled model has two heads, one for the class and one for the distillation token; "
            "neither can read the mean of the patches"
        )
    if classifier.global_pool not in _POOLS:
        raise UnsupportedModelError(
            f"this {type(model).__name__} pools with {classifier.global_pool!r}; "
            f"only {', '.join(_POOLS)} can be changed to the mean of the patches"
        )
    classifier.global_pool = "avg"
    if isinstance(classifier.fc_norm, nn.Identity):
        classifier.norm, classifier.fc_norm = classifier.fc_norm, classifier.norm
    return model
