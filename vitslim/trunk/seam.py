"""The one seam: putting a trunk in place of a timm model's blocks, and asking for it back."""

from typing import Any, cast

from torch import nn

from vitslim.errors import ConfigError
from vitslim.models import BaseModel
from vitslim.trunk.grid import watch_grid_
from vitslim.trunk.plan import Plan, settle_
from vitslim.trunk.trunk import Trunk, drop_unused_


def is_converted(model: nn.Module) -> bool:
    """Whether the model's blocks are a trunk."""
    return isinstance(getattr(model, "blocks", None), Trunk)


def trunk_of(model: nn.Module) -> Trunk:
    """The trunk of a converted model.

    Raises:
        ConfigError: the model is dense.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, Trunk):
        raise ConfigError(f"this {type(model).__name__} is dense; convert it first (vitslim.convert)")
    return blocks


def install_trunk_(model: nn.Module, plan: Plan, base: BaseModel | None) -> nn.Module:
    """Put a trunk that walks ``plan`` in place of the model's blocks."""
    settle_(plan.steps)
    drop_unused_(plan)
    model.blocks = Trunk(plan, cast(nn.Module, model.patch_embed), base).train(model.training)
    if getattr(model, "dynamic_img_size", False):
        watch_grid_(cast(nn.Module, model.patch_embed))
    return model


def plan_summary(model: nn.Module) -> list[dict[str, Any]]:
    """The plan of a converted model as plain data, one row per step."""
    return trunk_of(model).summary()
