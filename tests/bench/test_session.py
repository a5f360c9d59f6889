"""What goes wrong in a session costs what it belongs to, never the rows that were measured before."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from vitslim.bench import session as sessions
from vitslim.bench.nvml import Power
from vitslim.bench.result import Skipped
from vitslim.bench.session import RunConfig, Session, candidates
from vitslim.errors import ConfigError
from vitslim.kernels import dispatch
from vitslim.runtime import TorchRunner

IN_TORCH = RunConfig("torch", "fp32")


def session(models: dict[str, nn.Module], **options: Any) -> Session:
    given: dict[str, Any] = {"threads": 1, "rounds": 5, "warmup": 2, "seconds": None, "device": "cpu"}
    return Session(candidates=candidates(models), baseline="dense", **given | options)


def failing_at(call: int, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the n-th forward of ``model`` fail, counted from now."""
    calls, whole = [0], model.forward_head

    def forward_head(images: torch.Tensor) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == call:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(images)

    monkeypatch.setattr(model, "forward_head", forward_head)


def test_each_model_is_opened_and_warmed_up_in_its_own_mode(dense: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    ready: dict[str, str] = {}
    warmed = Session._ready

    def noted(self: Session, name: str, *given: Any) -> Any:
        ready[name] = dispatch._switch.mode
        return warmed(self, name, *given)

    monkeypatch.setattr(Session, "_ready", noted)
    held = session({"dense": dense, "without": dense, "with": dense})
    modes = {"without": "0", "with": "1"}
    own = {name: replace(one, triton=modes.get(name)) for name, one in held.candidates.items()}
    with dispatch.triton_mode("auto"):
        assert len(list(replace(held, candidates=own).measure(IN_TORCH, (1,), []))) == 3
    assert ready == {"dense": "auto", **modes}


def test_each_model_is_called_in_its_own_mode(dense: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    # torch.compile asks for the mode at every call, and where it is another compiles anew.
    called = set[tuple[str, str]]()
    warmed = Session._ready

    def noted(self: Session, name: str, *given: Any) -> Any:
        call = warmed(self, name, *given)
        whole = call.runner.run
        monkeypatch.setattr(
            call.runner, "run", lambda images: (called.add((name, dispatch._switch.mode)), whole(images))
        )
        return call

    monkeypatch.setattr(Session, "_ready", noted)
    held = session({"dense": dense, "with": dense})
    own = {name: replace(one, triton={"with": "1"}.get(name)) for name, one in held.candidates.items()}
    with dispatch.triton_mode("auto"):
        assert len(list(replace(held, candidates=own).measure(IN_TORCH, (1,), []))) == 2
    assert called == {("dense", "auto"), ("with", "1")}


def test_what_is_replayed_several_times_for_a_sample_is_told_as_one(
    dense: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [0]
    warmed = Session._ready

    def run() -> None:
        runs[0] += 1

    def repeated(self: Session, *given: Any) -> Any:
        return replace(warmed(self, *given), replay=run, repeats=4)

    monkeypatch.setattr(Session, "_ready", repeated)
    monkeypatch.setattr(Session, "_clock", lambda *_: lambda call: call() or 8.0)
    (row,) = session({"dense": dense}, rounds=5).measure(IN_TORCH, (2,), [])
    assert row.latency_ms_p50 == 2.0
    assert row.throughput_img_s == 1000.0
    assert runs[0] == 5 * 2 * 4  # two calls to a round


@pytest.mark.parametrize(("ms", "repeats"), [(0.3, 10), (2.9, 2), (3.0, 1), (70.0, 1), (0.0, 3000)])
def test_a_sample_of_graphs_lasts_three_milliseconds(ms: float, repeats: int) -> None:
    assert sessions._repeats(ms) == repeats


def test_every_batch_size_has_an_engine_of_its_own(dense: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def build(target: object, request: object, **options: Any) -> None:
        asked.append(options)
        raise ConfigError("no builder here")

    monkeypatch.setattr("vitslim.targets.TensorrtTarget.write", build)

    skipped: list[Skipped] = []
    held = session({"dense": dense}, device="cuda")
    assert list(held.measure(RunConfig("tensorrt", "fp16"), (1, 256), skipped)) == []
    assert asked == [{"batch": (1, 1, 1)}, {"batch": (256, 256, 256)}]
    assert [(skip.model, skip.batch) for skip in skipped] == [(None, 1), (None, 256)]


def test_a_model_that_fails_while_it_warms_up_loses_its_own_row_alone(
    dense: nn.Module, shallow: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = session({"dense": dense, "shallow": shallow})
    failing_at(3, shallow, monkeypatch)  # after the first call, in the warm-up
    skipped: list[Skipped] = []
    rows = list(held.measure(IN_TORCH, (1, 2), skipped))
    assert [(row.model, row.batch) for row in rows] == [("dense", 1), ("dense", 2), ("shallow", 2)]
    assert [(skip.model, skip.batch, skip.out_of_memory) for skip in skipped] == [("shallow", 1, True)]


def test_a_failure_while_the_clock_runs_costs_that_batch_size_alone(
    dense: nn.Module, shallow: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = session({"dense": dense, "shallow": shallow})
    # 1 + 2 + 2 · 5 calls of the first batch size, 1 + 2 of the second, then the first of its rounds
    failing_at(17, shallow, monkeypatch)
    skipped: list[Skipped] = []
    rows = list(held.measure(IN_TORCH, (1, 2, 3), skipped))
    assert [(row.model, row.batch) for row in rows] == [("dense", 1), ("shallow", 1), ("dense", 3), ("shallow", 3)]
    assert [(skip.model, skip.batch) for skip in skipped] == [(None, 2)]


def test_a_meter_that_fails_costs_the_energy_alone(dense: nn.Module, shallow: nn.Module) -> None:
    power = Power(energy_mj=8.0, power_w=2.0, sm_clock_mhz=1980)
    metered: list[object] = []

    def meter(call: object) -> Power:
        metered.append(call)
        if len(metered) == 1:
            raise RuntimeError("the driver was reset")
        return power

    held = session({"dense": dense, "shallow": shallow}, meter=meter)
    rows = list(held.measure(IN_TORCH, (2,), []))
    assert [(row.model, row.energy_mj_per_image) for row in rows] == [("dense", None), ("shallow", 4.0)]
    assert held.notes == [
        "no energy and clocks of dense, torch fp32, batch 2: RuntimeError: the driver was reset",
    ]


def test_peak_memory_that_cannot_be_read_costs_itself_alone(dense: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "memory_allocated", refuse)
    held = session({"dense": dense}, device="cuda")
    with TorchRunner(dense, name="dense") as runner:
        call = sessions._Call(runner, torch.zeros(1, 3, 32, 32))
        assert held._peak_memory_mib("dense", IN_TORCH, call) is None
    assert held.notes == ["no peak memory of dense, torch fp32, batch 1: OutOfMemoryError: CUDA out of memory"]
