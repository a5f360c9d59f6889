"""Tokens chosen in one way early in training, in another in the end."""

from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from inline_snapshot import snapshot
from torch import nn

from tests.train.conftest import same, weights
from tests.variants import dense, images_for
from vitslim.checkpoint import load, save
from vitslim.data import Loader
from vitslim.errors import CheckFailedError, ConfigError
from vitslim.methods import convert
from vitslim.progress import Progress
from vitslim.train import DistillConfig, distill
from vitslim.trunk import Trunk, trunk_of

Build = Callable[..., nn.Module]
OpenLoader = Callable[..., Loader]


def config(**changes: Any) -> DistillConfig:
    plain = {"steps": 6, "early_tokens": 0.5, "precision": "fp32", "tensorboard": False, "log_every": 1}
    return DistillConfig(**{**plain, **changes})


def student_of(teacher: nn.Module, **options: Any) -> nn.Module:
    return convert(teacher, "evo_vit", stages=(1, 3), **options)


def selecting(model: nn.Module) -> list[bool]:
    return [step.tokens.choice.selects for step in trunk_of(model).all_steps()]


STAGE_WISE, LAYER_WISE = [False, True, False, True], [False, True, True, True]


@torch.no_grad()
def test_the_early_form_is_the_layer_wise_schedule_and_leaves_no_trace(tmp_path: Path) -> None:
    teacher, images = dense("vit_plain"), images_for(dense("vit_plain"))
    model = student_of(teacher, keep=(0.5, 0.25))
    layer_wise = student_of(teacher, keep=(0.5, 0.25), schedule="layer")
    last = model(images)
    trunk_of(model).choose_early_(True)
    assert torch.equal(model(images), layer_wise(images))
    # What is saved in mid-training is the form that the model ends in.
    assert torch.equal(load(save(model, tmp_path))(images), last)
    trunk_of(model).choose_early_(False)
    assert torch.equal(model(images), last)
    assert not trunk_of(layer_wise).has_early_form
    assert not trunk_of(student_of(teacher, keep=1.0)).has_early_form


def test_a_form_that_cannot_run_is_refused_before_anything_changes() -> None:
    once = convert(dense("vit_plain"), "skipat", layers=(2,), identity=True)
    model, images = convert(once, "evo_vit", stages=(1,)), images_for(dense("vit_plain"))
    logits = model(images)
    with pytest.raises(ConfigError):
        trunk_of(model).choose_early_(True)
    assert torch.equal(model(images), logits)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_the_steps_before_the_share_choose_early(
    build: Build, open_loader: OpenLoader, ema_decay: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = build(seed=1)
    student, seen = student_of(teacher), list[tuple[bool, list[bool]]]()
    forward = Trunk.forward

    def noting(self: Trunk, tokens: torch.Tensor, **context: Any) -> torch.Tensor:
        seen.append((self.training, [step.tokens.choice.selects for step in self.all_steps()]))
        return forward(self, tokens, **context)

    monkeypatch.setattr(Trunk, "forward", noting)
    distill(student, teacher, open_loader(), config(ema_decay=ema_decay), val_loader=open_loader("val"))
    assert [form for training, form in seen if training] == [LAYER_WISE] * 3 + [STAGE_WISE] * 3
    # 5 steps are a pass: the evaluation after it, and the one at the end, both after the change.
    evaluated = [form for training, form in seen[1:] if not training]
    assert evaluated
    assert all(form == STAGE_WISE for form in evaluated)
    assert selecting(student) == STAGE_WISE


@pytest.mark.parametrize("stop", [2, 4])
def test_a_resumed_run_chooses_as_the_whole_one(
    build: Build, open_loader: OpenLoader, tmp_path: Path, stop: int
) -> None:
    teacher = build(seed=1)
    whole, broken, resumed = (student_of(teacher) for _ in range(3))
    distill(whole, teacher, open_loader(), config())

    def interrupt(report: Progress) -> None:
        if report.stage == "distill" and report.done == stop:
            raise KeyboardInterrupt

    settings = config(checkpoint_every=1)
    with pytest.raises(KeyboardInterrupt):
        distill(broken, teacher, open_loader(), settings, out_dir=tmp_path, progress=interrupt)
    assert selecting(broken) == STAGE_WISE
    distill(resumed, teacher, open_loader(), settings, out_dir=tmp_path, resume=True)
    assert same(weights(whole), weights(resumed))
    # The form matters: a run that is stage-wise throughout ends elsewhere.
    other = student_of(teacher)
    distill(other, teacher, open_loader(), config(early_tokens=0.0))
    assert not same(weights(whole), weights(other))


def test_a_run_that_time_cuts_off_ends_in_the_last_form(build: Build, open_loader: OpenLoader) -> None:
    teacher = build(seed=1)
    student = student_of(teacher)
    distill(student, teacher, open_loader(), config(steps=10**6, max_minutes=0.005))
    assert selecting(student) == STAGE_WISE


def test_a_diverged_run_leaves_the_last_form(build: Build, open_loader: OpenLoader) -> None:
    teacher = build(seed=1)
    student = student_of(teacher)

    def poison(progress: Progress) -> None:
        next(student.parameters()).data.fill_(torch.nan)

    with pytest.raises(CheckFailedError):
        distill(student, teacher, open_loader(), config(), progress=poison)
    assert selecting(student) == STAGE_WISE


def test_a_student_without_an_early_form_is_refused(build: Build, open_loader: OpenLoader) -> None:
    teacher = build(seed=1)
    with pytest.raises(ConfigError) as caught:
        distill(convert(teacher, "skipat", layers=(2,)), teacher, open_loader(), config())
    assert str(caught.value) == snapshot(
        "early_tokens=0.5: no step of this VisionTransformer chooses tokens in another way early in training; convert "
        "it with evo_vit (schedule: stage), or set early_tokens=0"
    )
    with pytest.raises(ConfigError, match=r"early_tokens=0\.5"):
        distill(build(), teacher, open_loader(), config())
    once = convert(teacher, "skipat", layers=(2,), identity=True)
    with pytest.raises(ConfigError, match=r"early_tokens=0\.5: step 2 .*; set early_tokens=0"):
        distill(convert(once, "evo_vit", stages=(1,)), teacher, open_loader(), config())


@pytest.mark.compiled
def test_compiled_training_follows_the_change(
    build: Build, open_loader: OpenLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The graphs are what changes, not the code that Inductor makes of them.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="aot_eager"))
    teacher = build(seed=1, depth=3)
    plain, compiled = (convert(teacher, "evo_vit", stages=(1,)) for _ in range(2))
    first = distill(plain, teacher, open_loader(), config())
    second = distill(compiled, teacher, open_loader(), config(compile=True))
    assert second.losses["kd"] == pytest.approx(first.losses["kd"], rel=1e-3)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, atol=1e-4, rtol=1e-3)
