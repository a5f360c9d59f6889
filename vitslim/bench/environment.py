"""On what a measurement was made, without saying whose machine it is."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from vitslim.runtime.versions import library_versions

_GIB = 2**30
_DRIVER = Path("/proc/driver/nvidia/version")

_ASK_FOR_GPUS = """
import json, torch
found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
print(json.dumps([[gpu.name, gpu.total_memory, gpu.major, gpu.minor] for gpu in found]))
"""


def environment() -> dict[str, Any]:
    """Hardware, load and library versions; no host name, user name or path."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": usable_cores(),
        "memory_gib": _memory_gib(),
        "torch_threads": torch.get_num_threads(),
        "load_average": load_average(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "driver": _driver_version(),
        "gpu": _gpus(),
        **library_versions(),
    }


def load_average() -> list[float] | None:
    """Runnable processes over 1, 5 and 15 minutes; ``None`` where the system does not keep it."""
    try:
        return [round(load, 2) for load in os.getloadavg()]
    except (AttributeError, OSError):  # Windows
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def usable_cores() -> int | None:
    """Cores that this process may use."""
    # A container may be pinned to fewer cores than the machine has.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _driver_version() -> str | None:
    """NVIDIA's, from the line "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  ..."."""
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", _DRIVER.read_text())
    except OSError:
        return None
    return found and found[0]


def _gpus() -> list[dict[str, Any]]:
    if torch.cuda.device_count() == 0:
        return []
    return [
        {"name": name, "memory_gib": round(memory / _GIB, 1), "compute_capability": f"{major}.{minor}"}
        for name, memory, major, minor in _gpu_properties()
    ]


def _gpu_properties() -> list[Any]:
    """Name, bytes and compute capability of every GPU."""
    # torch opens CUDA to answer. A process that only starts others must not: its context would stay on the GPU.
    if not torch.cuda.is_initialized():
        asked = subprocess.run([sys.executable, "-c", _ASK_FOR_GPUS], capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            return json.loads(asked.stdout.splitlines()[-1])
    found: list[Any] = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [(gpu.name, gpu.total_memory, gpu.major, gpu.minor) for gpu in found]
