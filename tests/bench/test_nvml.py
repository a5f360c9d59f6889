"""Energy and clocks through the driver's library, here one of Python functions."""

import ctypes
from typing import Any

import pytest
import torch

from vitslim.bench import nvml
from vitslim.errors import MissingDependencyError


class Driver:
    """NVML as far as it is called: 3000 millijoule more at every look."""

    def __init__(self) -> None:
        self.energy = 0
        self.asked: list[bytes] = []

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByPciBusId_v2(self, bus_id: bytes, handle: Any) -> int:
        self.asked.append(bus_id)
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, value: Any) -> int:
        self.energy += 3000
        value._obj.value = self.energy
        return 0

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int, value: Any) -> int:
        value._obj.value = {1: 1980, 2: 2619}[kind]
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: found)
    return found


def test_energy_is_that_of_one_call(driver: Driver) -> None:
    calls = []
    power = nvml.Nvml("0000:3b:00.0").measure(lambda: calls.append(0), lambda: None, seconds=1e-4)
    assert driver.asked == [b"0000:3b:00.0"]
    # One look before the loop, one after it; the first call is not counted.
    assert power.energy_mj == pytest.approx(3000 / (len(calls) - 1))
    assert (power.sm_clock_mhz, power.memory_clock_mhz) == (1980, 2619)
    assert power.power_w == pytest.approx(3 / power.seconds)


def test_a_machine_without_the_driver_says_so() -> None:
    with pytest.raises(MissingDependencyError, match="NVIDIA's driver library no-such-library"):
        nvml.Nvml("0000:00:00.0", library="no-such-library.so")


def test_a_gpu_without_an_energy_counter_says_so(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "nvmlDeviceGetTotalEnergyConsumption", lambda *_: 3)
    with pytest.raises(MissingDependencyError, match="nvmlDeviceGetTotalEnergyConsumption answered with NVML error 3"):
        nvml.Nvml("0000:00:00.0")


def test_an_old_driver_without_a_function_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    with pytest.raises(MissingDependencyError, match="has no nvmlInit_v2; update the driver"):
        nvml.Nvml("0000:00:00.0")


def test_a_cpu_has_no_energy_to_read() -> None:
    with pytest.raises(MissingDependencyError, match="NVIDIA GPUs alone"):
        nvml.open_nvml(torch.device("cpu"))


@pytest.mark.gpu
def test_the_real_driver_gives_power_and_clocks() -> None:
    values = torch.randn(2048, 2048, device="cuda")
    power = nvml.open_nvml(torch.device("cuda", 0)).measure(lambda: values @ values, torch.cuda.synchronize)
    assert power.power_w > 1
    assert power.sm_clock_mhz > 100
