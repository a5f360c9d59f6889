"""Energy and clocks through the driver's library, here one of Python functions."""

import ctypes
from typing import Any

import pytest
import torch

from vitslim.bench import nvml
from vitslim.errors import MissingDependencyError

IDLE_W, LOAD_W = 100.0, 300.0
STEP_SECONDS = 0.1


class Driver:
    """NVML as far as it is called, on a clock of its own.

    The GPU takes a quarter of a second to draw ``LOAD_W``, and its counter moves every ``STEP_SECONDS`` alone.
    """

    def __init__(self) -> None:
        self.now, self.begun = 0.037, 0.037
        self.asked: list[bytes] = []

    def call(self) -> None:
        """One millisecond of work."""
        self.now += 1e-3

    def energy_mj(self) -> float:
        shown = self.now // STEP_SECONDS * STEP_SECONDS
        loaded = max(0.0, shown - self.begun - 0.25)
        return 1e3 * (IDLE_W * (shown - loaded) + LOAD_W * loaded)

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByPciBusId_v2(self, bus_id: bytes, handle: Any) -> int:
        self.asked.append(bus_id)
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, value: Any) -> int:
        value._obj.value = round(self.energy_mj())
        return 0

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int, value: Any) -> int:
        value._obj.value = {1: 1980}[kind]
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    found = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: found)
    monkeypatch.setattr(nvml.time, "perf_counter", lambda: found.now)
    return found


def test_energy_is_that_of_one_call_under_load_whatever_the_counters_steps(driver: Driver) -> None:
    power = nvml.Nvml("0000:3b:00.0").measure(driver.call, lambda: None)
    assert driver.asked == [b"0000:3b:00.0"]
    assert power.power_w == pytest.approx(LOAD_W, rel=0.02)
    assert power.energy_mj == pytest.approx(LOAD_W, rel=0.02)  # of one millisecond
    assert power.sm_clock_mhz == 1980


@pytest.mark.parametrize("milliseconds", [0.01, 400])
def test_calls_of_any_length_are_counted(driver: Driver, milliseconds: float) -> None:
    def call() -> None:
        driver.now += milliseconds / 1e3

    power = nvml.Nvml("0000:3b:00.0").measure(call, lambda: None)
    assert power.energy_mj == pytest.approx(LOAD_W * milliseconds, rel=0.06)


def test_clocks_are_read_before_the_gpu_is_waited_for(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    read = driver.nvmlDeviceGetClockInfo
    opened = nvml.Nvml("0000:3b:00.0")
    monkeypatch.setattr(driver, "nvmlDeviceGetClockInfo", lambda *given: seen.append("clock") or read(*given))
    opened.measure(lambda: (seen.append("call"), driver.call()), lambda: seen.append("wait"))
    assert seen[-3:] == ["call", "clock", "wait"]


def test_a_counter_that_stands_still_ends_the_measurement(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "energy_mj", lambda: 7.0)
    with pytest.raises(MissingDependencyError, match="stood still for 2 s"):
        nvml.Nvml("0000:3b:00.0").measure(driver.call, lambda: None)


def test_a_machine_without_the_driver_says_so() -> None:
    with pytest.raises(MissingDependencyError, match="NVIDIA's driver library no-such-library"):
        nvml.Nvml("0000:00:00.0", library="no-such-library.so")


def test_a_gpu_without_an_energy_counter_says_so(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "nvmlDeviceGetTotalEnergyConsumption", lambda *_: 3)
    with pytest.raises(MissingDependencyError, match="nvmlDeviceGetTotalEnergyConsumption answered with NVML error 3"):
        nvml.Nvml("0000:00:00.0")


def test_a_gpu_without_clocks_says_so_before_anything_is_measured(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "nvmlDeviceGetClockInfo", lambda *_: 3)
    with pytest.raises(MissingDependencyError, match="nvmlDeviceGetClockInfo answered with NVML error 3"):
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
