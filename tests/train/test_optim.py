from collections.abc import Callable

import pytest
import torch
from torch import nn

from vitslim.errors import ConfigError
from vitslim.train.optim import make_optimizer, make_schedule, parameter_groups, planned_steps


def rates(name: str, steps: int = 100, warmup: int = 10) -> list[float]:
    optimizer = make_optimizer([{"params": [nn.Parameter(torch.zeros(2))]}], "adamw", lr=1.0, weight_decay=0.0)
    schedule = make_schedule(optimizer, name, steps=steps, lr=1.0, min_lr=0.0, warmup_steps=warmup)
    found: list[float] = []
    for step in range(steps):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_vectors_and_listed_parameters_do_not_decay(build: Callable[..., nn.Module]) -> None:
    model = build()
    groups = parameter_groups(model, weight_decay=0.05)
    still = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in still) == (parameter.ndim <= 1 or name in ("pos_embed", "cls_token")), name


def test_every_parameter_is_in_exactly_one_group(build: Callable[..., nn.Module]) -> None:
    model = build()
    new = list(model.get_submodule("head").parameters())
    for layer_decay in (None, 0.7):
        groups = parameter_groups(
            model, weight_decay=0.05, layer_decay=layer_decay, new_parameters=new, new_lr_scale=5.0
        )
        members = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(members) == sorted(id(parameter) for parameter in model.parameters())


def test_new_modules_learn_at_their_own_rate_on_top_of_layer_decay(build: Callable[..., nn.Module]) -> None:
    model = build()
    weight = model.get_parameter("blocks.0.mlp.fc1.weight")
    plain, scaled = (
        next(
            group["lr_scale"]
            for group in parameter_groups(
                model, weight_decay=0.05, layer_decay=0.5, new_parameters=[weight], new_lr_scale=scale
            )
            if any(parameter is weight for parameter in group["params"])
        )
        for scale in (1.0, 5.0)
    )
    assert scaled == pytest.approx(5 * plain)


def test_the_rate_rises_then_falls_and_no_step_is_wasted() -> None:
    found = rates("cosine")
    assert found[0] > 0
    assert found[:11] == sorted(found[:11])
    assert found[10:] == sorted(found[10:], reverse=True)
    assert 0 < found[-1] < 0.01
    assert rates("cosine", steps=1, warmup=0) == [1.0]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown optimizer 'adamv'; .*choose one of .*adamw"):
        make_optimizer([{"params": [nn.Parameter(torch.zeros(2))]}], "adamv", lr=1.0, weight_decay=0.0)
    with pytest.raises(ConfigError, match=r"unknown schedule 'cosinus'; choose one of .*cosine"):
        rates("cosinus")


def test_planned_steps_count_passes_or_steps() -> None:
    assert planned_steps(2.0, None, batches_per_epoch=10, accumulate=1) == 20
    assert planned_steps(0.25, None, batches_per_epoch=10, accumulate=1) == 3
    assert planned_steps(1.0, None, batches_per_epoch=10, accumulate=4) == 3
    assert planned_steps(None, 7, batches_per_epoch=10, accumulate=4) == 7
    assert planned_steps(None, None, batches_per_epoch=10, accumulate=1) == 10
