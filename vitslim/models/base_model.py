"""The name and options that a dense model is built from, noted on the model itself."""

from typing import Any, cast

from pydantic import Field
from torch import nn

from vitslim.shapes import Config

_ATTRIBUTE = "vitslim_base"


class BaseModel(Config):
    """The dense model under a conversion.

    ``architecture`` is a timm name (or ``builtin``), or, for a module that was built by hand, the class name with a
    leading colon, as in ``:VisionTransformer``. ``options`` are what must be passed beside it.
    """

    architecture: str
    options: dict[str, Any] = Field(default_factory=dict)


def remember_base(model: nn.Module, base: BaseModel) -> nn.Module:
    """Note on the model itself how it was built."""
    setattr(model, _ATTRIBUTE, base)
    return model


def remembered_base(model: nn.Module) -> BaseModel | None:
    """What ``remember_base`` noted."""
    return cast("BaseModel | None", getattr(model, _ATTRIBUTE, None))
