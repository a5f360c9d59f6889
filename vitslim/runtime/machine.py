"""Which GPU, driver and CUDA this machine has, as far as an engine depends on them."""

import re
from pathlib import Path

import torch

from vitslim.shapes import Result

_DRIVER_FILE = Path("/proc/driver/nvidia/version")


class Machine(Result):
    """The GPU that an engine was built for or should run on; all ``None`` where there is none."""

    gpu: str | None = None
    compute_capability: str | None = None
    driver: str | None = None
    cuda: str | None = None


def this_machine(device: torch.device | None = None) -> Machine:
    """What is here: the given GPU, or torch's current one."""
    if not torch.cuda.is_available():
        return Machine()
    major, minor = torch.cuda.get_device_capability(device)
    return Machine(
        gpu=torch.cuda.get_device_name(device),
        compute_capability=f"{major}.{minor}",
        driver=_driver(),
        cuda=torch.version.cuda,
    )


def _driver() -> str | None:
    try:
        found = re.search(r"\b\d{3}\.\d+(?:\.\d+)?\b", _DRIVER_FILE.read_text())
    except OSError:
        return None
    return found.group() if found else None
