"""Calls that are timed as CUDA graphs, without a GPU: what is replayed and how often, and where none can be made."""

from types import SimpleNamespace

import pytest
import torch

from vitslim.bench.session import RunConfig, Session, _Call
from vitslim.errors import CheckFailedError
from vitslim.runtime import Runner
from vitslim.runtime.cuda_graph import CapturedRun


class Recorder(Runner):
    """A runner whose recorded run counts its replays, or that cannot be recorded."""

    def __init__(self, *, fails: bool = False) -> None:
        self.fails, self.replays = fails, 0
        self.images = torch.zeros(2, 3, 4, 4)

    def capture(self, shape: tuple[int, ...]) -> CapturedRun:
        if self.fails:
            raise CheckFailedError("TensorRT reads a shape back")
        assert shape == self.images.shape
        return CapturedRun(self.images, self.images, self._replay)

    def run(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def _replay(self) -> None:
        self.replays += 1


def session(notes: list[str]) -> SimpleNamespace:
    def note(what: str, name: str, config: RunConfig, call: _Call, error: Exception) -> None:
        notes.append(f"no {what} of {name}: {error}")

    return SimpleNamespace(_clock=lambda config: lambda call: (call(), 1.0)[1], _note=note)


@pytest.mark.parametrize("backend", ["tensorrt", "rtx", "compiled-graph"])
def test_a_call_becomes_replays_that_last_long_enough(backend: str) -> None:
    runner, images = Recorder(), torch.ones(2, 3, 4, 4)
    call = Session._recorded(session([]), "m", _Call(runner, images), RunConfig(backend, "fp16"))
    assert torch.equal(runner.images, images)
    assert call.repeats == 3
    before = runner.replays
    call()
    assert runner.replays == before + 3


def test_an_engine_that_cannot_be_recorded_is_timed_without_a_graph_and_torch_is_not() -> None:
    notes: list[str] = []
    call = _Call(Recorder(fails=True), torch.ones(2, 3, 4, 4))
    assert Session._recorded(session(notes), "m", call, RunConfig("tensorrt", "fp16")) is call
    assert notes == ["no CUDA graph of m: TensorRT reads a shape back"]
    with pytest.raises(CheckFailedError, match="reads a shape back"):
        Session._recorded(session(notes), "m", call, RunConfig("compiled-graph", "bf16"))
