from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.train.conftest import same, weights
from vitslim.data import Loader
from vitslim.errors import ConfigError
from vitslim.methods import convert
from vitslim.train import WarmStartConfig, warm_start
from vitslim.trunk import trunk_of

Build = Callable[..., nn.Module]
OpenLoader = Callable[..., Loader]


def config(**changes: Any) -> WarmStartConfig:
    return WarmStartConfig(**{"steps": 40, "lr": 1e-2, "precision": "fp32", "tensorboard": False, **changes})


def test_every_new_module_nears_what_the_dense_model_computed(build: Build, open_loader: OpenLoader) -> None:
    teacher = build()
    student = convert(teacher, "skipat", layers=(1, 2))
    result = warm_start(student, teacher, open_loader(labels="ignore"), config())
    before, after = result.step_losses_before, result.step_losses_after
    assert before is not None
    assert after is not None
    assert set(before) == set(after) == {1, 2}
    assert all(after[step] < 0.7 * before[step] for step in before)
    assert set(result.losses) == {"step_1", "step_2"}


def test_nothing_but_the_new_modules_changes(build: Build, open_loader: OpenLoader) -> None:
    teacher = build()
    student = convert(teacher, "skipat", layers=(2,))
    new = {id(parameter) for parameter in trunk_of(student).new_parameters().values()}
    old = {name: p.detach().clone() for name, p in student.named_parameters() if id(p) not in new}
    result = warm_start(student, teacher, open_loader(), config(steps=2))
    assert same(old, {name: p.detach() for name, p in student.named_parameters() if id(p) not in new})
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert result.parameters == sum(p.numel() for p in trunk_of(student).new_parameters().values())


def test_the_frozen_stay_frozen(build: Build, open_loader: OpenLoader) -> None:
    teacher = build()
    student = convert(teacher, "skipat", layers=(2,))
    student.get_parameter("pos_embed").requires_grad_(False)
    warm_start(student, teacher, open_loader(), config(steps=1))
    assert not student.get_parameter("pos_embed").requires_grad


def test_leave_to_resume_changes_nothing_where_there_is_nothing_to_resume(
    build: Build, open_loader: OpenLoader, tmp_path: Path
) -> None:
    teacher = build()
    students = [convert(teacher, "skipat", layers=(2,)) for _ in range(2)]
    for student, resume in zip(students, (False, True), strict=True):
        warm_start(student, teacher, open_loader(), config(steps=1), out_dir=tmp_path / str(resume), resume=resume)
    assert same(weights(students[0]), weights(students[1]))


def test_a_warm_start_can_be_resumed(build: Build, open_loader: OpenLoader, tmp_path: Path) -> None:
    teacher = build()
    students = [convert(teacher, "skipat", layers=(2,)) for _ in range(2)]
    for student in students:
        warm_start(student, teacher, open_loader(), config(steps=3), out_dir=tmp_path, resume=True)
    assert same(weights(students[0]), weights(students[1]))


def test_a_dense_student_is_refused(build: Build, open_loader: OpenLoader) -> None:
    with pytest.raises(ConfigError, match="is dense; convert it first"):
        warm_start(build(), build(), open_loader(), config())


def test_a_conversion_without_new_parameters_is_refused(build: Build, open_loader: OpenLoader) -> None:
    teacher = build()
    student = convert(teacher, "skipat", layers=(2,), identity=True)
    with pytest.raises(ConfigError, match="nothing to fit"):
        warm_start(student, teacher, open_loader(), config())


def test_what_cannot_be_fitted_is_refused_before_anything_is_solved_for(build: Build, open_loader: OpenLoader) -> None:
    teacher = build()
    student = convert(teacher, "skipat", layers=(2,))
    before = weights(student)
    with pytest.raises(ConfigError, match="unknown schedule 'cosinus'"):
        warm_start(student, teacher, open_loader(), config(schedule="cosinus"))
    teacher.get_parameter("norm.bias").data.fill_(float("inf"))
    with pytest.raises(ConfigError, match=r"the teacher's norm.bias holds NaN or infinity"):
        warm_start(student, teacher, open_loader(), config())
    assert same(before, weights(student))


def test_a_conversion_that_is_solved_for_needs_no_gradient_steps(build: Build, open_loader: OpenLoader) -> None:
    teacher = build()
    student = convert(teacher, "depth", layers=(1,), stand_in=True)
    result = warm_start(student, teacher, open_loader(labels="ignore"), config())
    assert (result.steps, result.parameters, result.stopped) == (0, 0, "finished")
    assert result.step_losses_after is not None
    assert result.step_losses_before is not None
    assert result.step_losses_after[1] < result.step_losses_before[1]
    with pytest.raises(ConfigError, match="give closed_form_batches"):
        warm_start(student, teacher, open_loader(), config(closed_form_batches=0))
