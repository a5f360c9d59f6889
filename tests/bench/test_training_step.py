"""A training step as a competitor, and what else a session records."""

import copy

import pytest
import torch
from torch import nn

from vitslim.bench import benchmark
from vitslim.bench.errors import is_out_of_memory
from vitslim.bench.nvml import Power
from vitslim.bench.session import RunConfig, Session, candidates
from vitslim.bench.training_step import TrainingRunner
from vitslim.errors import ConfigError
from vitslim.methods import convert

FAST = {"rounds": 5, "warmup": 1, "seconds": None, "threads": 1, "device": "cpu"}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_moves_the_copy_and_not_the_model(shallow: nn.Module, precision: str) -> None:
    before = copy.deepcopy(shallow.state_dict())
    runner = TrainingRunner(shallow, precision=precision, device="cpu")
    images = torch.randn(4, 3, 32, 32)
    losses = [runner.run(images).mean() for _ in range(40)]
    assert losses[-1] < losses[0]
    assert losses[0].dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in shallow.state_dict().items())
    assert not any(parameter.grad is not None for parameter in shallow.parameters())
    assert (runner.backend, runner.precision) == ("train", precision)


def test_what_a_step_cannot_be_is_refused(shallow: nn.Module) -> None:
    with pytest.raises(ConfigError, match="fp16 needs its gradients scaled"):
        TrainingRunner(shallow, precision="fp16", device="cpu")
    with pytest.raises(ConfigError, match="not recorded as a CUDA graph"):
        TrainingRunner(shallow, precision="fp32", device="cpu").capture((1, 3, 32, 32))


def test_training_steps_are_compared_like_forwards(dense: nn.Module) -> None:
    models = {"dense": dense, "evo-vit": convert(dense, "evo_vit")}
    report = benchmark(models, baseline="dense", backends=("train",), batches=(2,), rounds=5, warmup=1)
    assert [(row.model, row.backend) for row in report.rows] == [("dense", "train"), ("evo-vit", "train")]


def test_running_out_of_memory_is_recorded_as_that(dense: nn.Module, shallow: nn.Module) -> None:
    hungry = copy.deepcopy(shallow)

    def refuse(images):
        if images.is_meta:
            return images
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 81 GiB")

    hungry.forward_head = refuse
    report = benchmark(
        {"dense": dense, "hungry": hungry}, baseline="dense", backends=("torch",), batches=(1,), rounds=5, warmup=1
    )
    assert [row.model for row in report.rows] == ["dense"]
    (skip,) = report.skipped
    assert (skip.model, skip.out_of_memory) == ("hungry", True)
    assert is_out_of_memory(RuntimeError("Failed to allocate: Out of memory"))
    assert not is_out_of_memory(RuntimeError("memory format"))


def test_a_meter_gives_every_row_its_energy(dense: nn.Module) -> None:
    power = Power(energy_mj=30.0, power_w=300.0, sm_clock_mhz=1700)
    session = Session(candidates=candidates({"dense": dense}), baseline="dense", meter=lambda call: power, **FAST)
    (row,) = session.measure(RunConfig("torch", "fp32"), (3,), [])
    assert (row.energy_mj_per_image, row.power_w, row.sm_clock_mhz) == (10.0, 300.0, 1700)


def test_a_cuda_graph_needs_a_gpu(dense: nn.Module) -> None:
    report = benchmark({"dense": dense}, baseline="dense", backends=("compiled-graph",), batches=(1,), rounds=5)
    assert "backend compiled-graph runs on a GPU" in report.skipped[0].reason


@pytest.mark.gpu
@pytest.mark.compiled
def test_a_compiled_graph_is_replayed(dense: nn.Module) -> None:
    options = {"backends": ("compiled-graph",), "batches": (2,), "rounds": 5, "warmup": 1, "device": "cuda"}
    report = benchmark({"dense": dense, "evo-vit": convert(dense, "evo_vit")}, baseline="dense", **options)
    assert report.skipped == []
    assert all(row.peak_memory_mib for row in report.rows)
