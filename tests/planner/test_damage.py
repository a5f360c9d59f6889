"""What is measured of a plan before it is trained."""

from pathlib import Path

import pytest
import torch
from torch import nn

from vitslim.methods import METHODS, planned, read_method
from vitslim.planner import DamageMeter, damage
from vitslim.plans import NoAttention, NoMlp
from vitslim.trunk import build, plan_of


def test_the_damage_of_the_dense_plan_is_none(model: nn.Module, meter: DamageMeter) -> None:
    found = meter(plan_of(model))
    assert (found.kl, found.agreement) == (pytest.approx(0.0, abs=1e-6), 1.0)
    assert found.loss == pytest.approx(meter.dense.loss)
    assert found.top1 == meter.dense.top1
    assert meter.images == 8


def test_damage_is_measured_behind_the_closed_form_start(model: nn.Module, meter: DamageMeter) -> None:
    plan = planned(*read_method("mlp", {"keep": 0.5}), plan_of(model))
    assert meter(plan).kl < meter.of(build(plan, model).eval()).kl


@pytest.mark.parametrize("name", METHODS.names())
def test_a_front_that_is_not_run_again_changes_nothing(
    name: str, model: nn.Module, batches: list[torch.Tensor], meter: DamageMeter, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = METHODS.get(name)
    # Steps that are left as they are stand in front, so that there is something not to run.
    options = {**method.example, **({"layers": (2, 3)} if name in ("mlp", "heads") else {})}
    plan = planned(*read_method(name, options), plan_of(model))
    monkeypatch.setattr(damage, "KEPT_BYTES", 0)
    plain = DamageMeter(model, batches[:1], batches[1:], [torch.arange(8)])
    assert plain(plan).kl == pytest.approx(meter(plan).kl, rel=2e-2, abs=1e-5)


def test_the_front_is_not_run_again(model: nn.Module, meter: DamageMeter) -> None:
    dense, calls = plan_of(model), 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    # The student's front blocks are copies of the dense ones: their attention is what runs, or does not.
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, *_: count() if type(module).__name__ == "DenseAttention" else None
    )
    try:
        meter(dense.with_steps({3: dense.steps[3].but(mlp=NoMlp())}))
    finally:
        handle.remove()
    # Of four steps the last and the one before it, on one batch.
    assert calls <= 2


def test_what_was_measured_is_read_from_its_file(model: nn.Module, batches: list[torch.Tensor], tmp_path: Path) -> None:
    dense, path = plan_of(model), tmp_path / "damages.json"
    plan = dense.with_steps({1: dense.steps[1].but(attention=NoAttention())})
    first = DamageMeter(model, batches[:1], batches[1:], path=path)(plan)
    again = DamageMeter(model, batches[1:], batches[:1], path=path)
    assert again(plan) == first
    assert first.loss is None
    path.write_text("{")
    assert DamageMeter(model, batches[1:], batches[:1], path=path)(plan) != first
