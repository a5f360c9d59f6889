"""Which parameter learns how fast: groups, optimiser, schedule, all timm's."""

import difflib
import math
from collections.abc import Collection
from typing import Any

import timm.optim
import timm.scheduler
import torch
from timm.optim._param_groups import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from vitslim.errors import ConfigError
from vitslim.train.settings import LoopConfig

# Adahessian asks for second derivatives; Kron keeps lists of matrices, which the state of a run does not hold.
_EXCLUDED = ("adahessian", "kron*")
SCHEDULES = ("cosine", "tanh", "poly", "wsd", "constant")  # timm's that need no options beyond ours


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    layer_decay: float | None = None,
    new_parameters: Collection[nn.Parameter] = (),
    new_lr_scale: float = 1.0,
) -> list[dict[str, Any]]:
    """Group what trains: no decay for biases, norms and other vectors; own speeds for early layers and new modules.

    Args:
        weight_decay: of matrices.
        layer_decay: factor on the learning rate per layer away from the output, 0..1; None: no difference.
        new_parameters: parameters that the dense model did not have.
        new_lr_scale: factor on their learning rate.
    """
    listed = getattr(model, "no_weight_decay", set[str])()
    if layer_decay is None:
        groups = param_groups_weight_decay(model, weight_decay, no_weight_decay_list=listed)
    else:
        groups = param_groups_layer_decay(model, weight_decay, no_weight_decay_list=listed, layer_decay=layer_decay)
    new = {id(parameter) for parameter in new_parameters}
    if not new or new_lr_scale == 1.0:
        return groups
    divided: list[dict[str, Any]] = []
    for group in groups:
        for is_new, scale in ((False, 1.0), (True, new_lr_scale)):
            members = [parameter for parameter in group["params"] if (id(parameter) in new) == is_new]
            if members:
                divided.append({**group, "params": members, "lr_scale": group.get("lr_scale", 1.0) * scale})
    return divided


def make_optimizer(groups: list[dict[str, Any]], name: str, lr: float, weight_decay: float) -> Optimizer:
    """Make one of timm's optimisers.

    Raises:
        ConfigError: timm knows no optimiser of that name, or it needs a library or device that is not there.
    """
    if name not in _known_optimizers():
        raise ConfigError(_unknown("optimizer", name, _known_optimizers()))
    try:
        return timm.optim.create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=weight_decay)
    except (AssertionError, ImportError, ValueError) as error:
        raise ConfigError(f"optimizer {name!r} cannot be made: {error}; choose another, as adamw") from error


def make_schedule(
    optimizer: Optimizer, name: str, *, steps: int, lr: float, min_lr: float, warmup_steps: int
) -> Scheduler:
    """Make one of timm's learning-rate schedules over optimiser steps, with a linear start that wastes no step.

    Raises:
        ConfigError: no schedule of that name.
    """
    if name not in SCHEDULES:
        raise ConfigError(_unknown("schedule", name, SCHEDULES))
    schedule, _ = timm.scheduler.create_scheduler_v2(
        optimizer,
        sched=name,
        num_epochs=steps,
        min_lr=min_lr,
        warmup_epochs=warmup_steps,
        warmup_lr=lr / (warmup_steps + 1),
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    assert schedule is not None
    return schedule


def optimizer_errors(config: LoopConfig) -> list[str]:
    """Why no optimiser or schedule can be made of these settings, for any model; empty where both can."""
    errors: list[str] = []
    try:
        make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}], config.optimizer, config.lr, config.weight_decay)
    except ConfigError as error:
        errors.append(str(error))
    if config.schedule not in SCHEDULES:
        errors.append(_unknown("schedule", config.schedule, SCHEDULES))
    return errors


def _known_optimizers() -> list[str]:
    return [str(name) for name in timm.optim.list_optimizers(exclude_filters=list(_EXCLUDED))]


def _unknown(kind: str, name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {kind} {name!r}{hint} (choose one of {', '.join(known)})"


def planned_steps(epochs: float | None, steps: int | None, batches_per_epoch: int, accumulate: int) -> int:
    """How many optimiser steps a run has."""
    if steps is not None:
        return steps
    return max(1, math.ceil((epochs or 1.0) * batches_per_epoch / accumulate))
