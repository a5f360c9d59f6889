"""Which tokens a timm classifier reads."""

from typing import Any, cast

from torch import nn


def reads_class_token_alone(model: nn.Module) -> bool:
    """Whether nothing but the class token (and a distillation token) reaches the output."""
    return getattr(model, "global_pool", None) == "token" and getattr(model, "attn_pool", None) is None


def read_patch_mean_(model: nn.Module) -> None:
    """Let the classifier read the mean of all patch tokens, normalised after the mean; ``check`` says where it can.

    It is the form that timm builds for ``global_pool="avg"``: the final norm goes from ``norm`` to ``fc_norm``, its
    weights with it.
    """
    classifier = cast(Any, model)
    classifier.global_pool = "avg"
    if isinstance(classifier.fc_norm, nn.Identity):
        classifier.norm, classifier.fc_norm = classifier.fc_norm, classifier.norm
