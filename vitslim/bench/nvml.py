"""Energy, power and clocks of an NVIDIA GPU, read from the library that its driver brings.

Source: NVML API reference, "Device Queries". No package is needed: the few functions are called through ctypes.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from vitslim.errors import MissingDependencyError
from vitslim.shapes import Result

LIBRARY = "libnvidia-ml.so.1"
_SM = 1  # of nvmlClockType_t
_SETTLING_SECONDS = 0.3  # until power and clocks are those of the load
_MIN_SECONDS = 1.0  # the energy counter moves in steps of some tens of milliseconds
_STANDSTILL_SECONDS = 2.0  # without a step
_QUEUED_SECONDS = 0.01  # what is queued at once: long beside a look at the counter, short beside its steps
_MOST_QUEUED = 500


class Power(Result):
    """What a GPU drew and how fast it ran while one call was repeated."""

    energy_mj: float  # of one call, millijoule
    power_w: float  # mean
    sm_clock_mhz: int  # at the end of the loop


class Nvml:
    """One GPU seen by NVML.

    Args:
        bus_id: PCI address of the GPU, as ``0000:3b:00.0``.
        library: the shared library's name or path.

    Raises:
        MissingDependencyError: no driver library, or it does not know the GPU, its energy or its clocks.
    """

    def __init__(self, bus_id: str, library: str = LIBRARY) -> None:
        try:
            self._library: Any = ctypes.CDLL(library)
        except OSError as error:
            raise MissingDependencyError(f"energy and clocks need NVIDIA's driver library {library}: {error}") from None
        self._call("nvmlInit_v2")
        self._handle = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByPciBusId_v2", bus_id.encode(), ctypes.byref(self._handle))
        # What cannot be read is refused before anything is measured.
        self.energy_mj()
        self.clock_mhz()

    def energy_mj(self) -> int:
        """Millijoule since the driver was loaded."""
        value = ctypes.c_ulonglong()
        self._call("nvmlDeviceGetTotalEnergyConsumption", self._handle, ctypes.byref(value))
        return value.value

    def clock_mhz(self) -> int:
        """The clock of the multiprocessors now."""
        value = ctypes.c_uint()
        self._call("nvmlDeviceGetClockInfo", self._handle, _SM, ctypes.byref(value))
        return value.value

    def measure(self, call: Callable[[], object], wait: Callable[[], object], seconds: float = _MIN_SECONDS) -> Power:
        """Repeat a call for at least so many seconds between two steps of the energy counter.

        Args:
            wait: returns when the GPU has done what was asked for.

        Raises:
            MissingDependencyError: the counter stands still.
        """
        call()
        wait()
        asked = time.perf_counter()
        call()
        wait()
        one = max(time.perf_counter() - asked, 1e-6)
        at_once = min(max(1, math.ceil(_QUEUED_SECONDS / one)), _MOST_QUEUED)
        first, began, _ = self._repeat(call, wait, at_once, _SETTLING_SECONDS)
        last, ended, times = self._repeat(call, wait, at_once, seconds)
        clock = self.clock_mhz()  # while the GPU is at work
        wait()
        used = last - first
        power_w = used / 1e3 / (ended - began)
        return Power(energy_mj=used / (times * at_once), power_w=power_w, sm_clock_mhz=clock)

    def _repeat(
        self, call: Callable[[], object], wait: Callable[[], object], at_once: int, seconds: float
    ) -> tuple[int, float, int]:
        """Repeat a call for so many seconds, then until the counter moves; ends with ``at_once`` calls queued.

        Returns:
            The energy and the time at that step, and how often ``at_once`` calls were queued.
        """
        began, energy, times = time.perf_counter(), self.energy_mj(), 0
        while True:
            wait()
            for _ in range(at_once):
                call()
            # Read while the GPU is at work: it must not idle meanwhile.
            before, energy, now, times = energy, self.energy_mj(), time.perf_counter(), times + 1
            if now - began >= seconds and energy != before:
                return energy, now, times
            if now - began > seconds + _STANDSTILL_SECONDS:
                raise MissingDependencyError(f"energy: the GPU's counter stood still for {_STANDSTILL_SECONDS:g} s")

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            code = int(getattr(self._library, name)(*arguments))
        except AttributeError:
            raise MissingDependencyError(f"NVIDIA's driver library has no {name}; update the driver") from None
        if code:
            raise MissingDependencyError(f"energy and clocks: {name} answered with NVML error {code}")


def open_nvml(device: torch.device) -> Nvml:
    """NVML of a torch device.

    Raises:
        MissingDependencyError: there is no energy to be read.
    """
    if device.type != "cuda":
        raise MissingDependencyError("energy and clocks are read from NVIDIA GPUs alone")
    properties: Any = torch.cuda.get_device_properties(device)
    try:
        numbers = (properties.pci_domain_id, properties.pci_bus_id, properties.pci_device_id)
    except AttributeError:
        raise MissingDependencyError("energy and clocks: this torch does not tell the GPU's PCI address") from None
    return Nvml("{:04x}:{:02x}:{:02x}.0".format(*numbers))
