"""Devices that are really there."""

import torch
from torch import nn

from vitslim.errors import MissingDependencyError
from vitslim.names import check_device


def on_device(model: nn.Module, device: str) -> nn.Module:
    """The model moved to a device; see ``device_named``."""
    return model.to(device_named(device))


def device_named(device: str) -> torch.device:
    """A device that is really there.

    Raises:
        ConfigError: the device's name is not one.
        MissingDependencyError: the device is absent.
    """
    wanted = torch.device(check_device(device))
    if wanted.type == "cuda":
        if not torch.cuda.is_available():
            raise MissingDependencyError(f"device {device!r} was asked for, but no usable GPU is there; use cpu")
        if (wanted.index or 0) >= torch.cuda.device_count():
            raise MissingDependencyError(f"device {device!r} was asked for; there are {torch.cuda.device_count()} GPUs")
    return wanted
