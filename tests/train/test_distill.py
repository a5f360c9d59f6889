from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.train.conftest import same, weights
from vitslim.data import Loader
from vitslim.errors import CheckpointError, ConfigError
from vitslim.methods import convert
from vitslim.opening import open_model
from vitslim.train import DistillConfig, distill, evaluate

Build = Callable[..., nn.Module]
OpenLoader = Callable[..., Loader]


def config(**changes: Any) -> DistillConfig:
    plain: dict[str, Any] = {"steps": 20, "lr": 2e-3, "precision": "fp32", "log_every": 1, "tensorboard": False}
    return DistillConfig(**{**plain, **changes})


def student_of(teacher: nn.Module) -> nn.Module:
    return convert(teacher, "skipat", layers=(2,))


def test_a_student_nears_its_teacher_without_labels(build: Build, open_loader: OpenLoader) -> None:
    teacher = build()
    student = student_of(teacher)
    held_out = open_loader("val")
    before = evaluate(student, held_out, teacher=teacher)
    result = distill(student, teacher, open_loader(labels="ignore"), config(steps=40))
    after = evaluate(student, held_out, teacher=teacher)
    assert before.kl is not None
    assert after.kl is not None
    assert after.kl < 0.5 * before.kl
    assert result.stage == "distill"
    assert list(result.losses) == ["kd"]


def test_the_teacher_stays_as_it_is(build: Build, open_loader: OpenLoader) -> None:
    teacher = build()
    before = weights(teacher)
    distill(student_of(teacher), teacher, open_loader(), config(steps=3))
    assert same(before, weights(teacher))
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not teacher.training


def test_all_parts_of_the_loss_are_reported_with_their_weights(build: Build, open_loader: OpenLoader) -> None:
    teacher = build()
    mix = {"ce_weight": 0.5, "kd_weight": 0.25, "token_weight": 2.0, "step_output_weight": 1.0}
    result = distill(student_of(teacher), teacher, open_loader(), config(steps=1, **mix))
    double = distill(
        student_of(teacher), teacher, open_loader(), config(steps=1, **{name: 2 * w for name, w in mix.items()})
    )
    assert {f"{name}_weight" for name in result.losses} == mix.keys()
    for name, value in result.losses.items():
        assert double.losses[name] == pytest.approx(2 * value, rel=1e-4)


@pytest.mark.parametrize("part", ["token", "step_output"])
def test_an_equal_student_has_no_distance_to_its_teacher(build: Build, open_loader: OpenLoader, part: str) -> None:
    result = distill(build(), build(), open_loader(), config(steps=1, kd_weight=0.0, **{f"{part}_weight": 1.0}))
    assert result.losses[part] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("part", ["token", "step_output"])
def test_features_alone_teach_a_student(build: Build, open_loader: OpenLoader, part: str) -> None:
    teacher = build()
    student = student_of(teacher)
    first = distill(student, teacher, open_loader(), config(steps=1, kd_weight=0.0, **{f"{part}_weight": 1.0})).losses[
        part
    ]
    distill(student, teacher, open_loader(), config(steps=30, kd_weight=0.0, **{f"{part}_weight": 1.0}))
    last = distill(
        student, teacher, open_loader(), config(steps=1, lr=1e-9, kd_weight=0.0, **{f"{part}_weight": 1.0})
    ).losses[part]
    assert last < 0.8 * first


def test_a_shallower_student_is_matched_by_depth(build: Build, open_loader: OpenLoader) -> None:
    result = distill(build(depth=2), build(), open_loader(), config(steps=1, kd_weight=0.0, step_output_weight=1.0))
    assert result.losses["step_output"] > 0


def test_mixing_needs_no_labels_when_only_the_teacher_counts(build: Build, open_loader: OpenLoader) -> None:
    settings = config(steps=2, mixup=0.8, cutmix=1.0)
    result = distill(build(seed=1), build(), open_loader(labels="ignore"), settings)
    assert list(result.losses) == ["kd"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kd_weight": 0.0},
            "every part of the loss has weight 0; raise one of ce_weight, kd_weight, token_weight, step_output_weight",
        ),
        ({"ce_weight": 1.0}, "ce_weight=1 needs labels and fractals .train. has none; set ce_weight=0"),
        ({"mixup": 0.8}, "batch_size=5 must be even"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    build: Build, open_loader: OpenLoader, tmp_path: Path, settings: dict[str, float], message: str
) -> None:
    student = build()
    before = weights(student)
    with pytest.raises(ConfigError, match=message):
        distill(
            student, build(), open_loader(labels="ignore", batch_size=5), config(**settings), out_dir=tmp_path / "out"
        )
    assert same(before, weights(student))
    assert not (tmp_path / "out").exists()


def test_errors_are_reported_together(build: Build, open_loader: OpenLoader) -> None:
    with pytest.raises(
        ConfigError, match=r"kd_weight=1 needs a teacher.*; ce_weight=1 needs labels.*; mixup and cutmix"
    ):
        distill(build(), None, open_loader(labels="ignore", batch_size=5), config(ce_weight=1.0, mixup=1.0))


def test_models_and_data_that_do_not_fit_are_refused(build: Build, open_loader: OpenLoader) -> None:
    loader = open_loader()
    with pytest.raises(ConfigError, match="has 4 classes, the model 10 outputs"):
        distill(build(num_classes=10), None, loader, config(ce_weight=1.0, kd_weight=0.0))
    with pytest.raises(ConfigError, match="the student has 4 outputs, the teacher 10"):
        distill(build(), build(num_classes=10), loader, config())
    with pytest.raises(ConfigError, match="does not take images of 3x32x32"):
        distill(build(img_size=64), build(), loader, config())
    with pytest.raises(ConfigError, match=r"token_weight=1 compares .*\(17, 48\) and the teacher with \(17, 24\)"):
        distill(build(), build(embed_dim=24), loader, config(token_weight=1.0))
    with pytest.raises(
        ConfigError, match=r"_output_weight=1 compares .*\(17, 48\) per step and the teacher \(17, 24\)"
    ):
        distill(build(), build(embed_dim=24), loader, config(step_output_weight=1.0))
    with pytest.raises(ConfigError, match="the model has no classifier"):
        distill(build(num_classes=0), build(num_classes=0), loader, config())


def test_every_supported_family_can_be_distilled(open_loader: OpenLoader) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_classes": 4}
    for name in ("eva02_tiny_patch14_224", "beit_base_patch16_224"):
        with torch.random.fork_rng():
            teacher = open_model(name, pretrained=False, **sizes)
        student = student_of(teacher)
        mix = config(steps=2, ce_weight=1.0, token_weight=1.0, step_output_weight=1.0)
        assert distill(student, teacher, open_loader(), mix).steps == 2


# What asks for compiling is tested without Inductor in test_early_tokens.py.
@pytest.mark.slow
@pytest.mark.compiled
def test_compiled_training_gives_the_same_losses(build: Build, open_loader: OpenLoader) -> None:
    losses = [
        distill(build(seed=1, depth=1), build(depth=1), open_loader(), config(steps=2, compile=compiles)).losses["kd"]
        for compiles in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_an_output_folder_that_cannot_be_one_is_refused_before_a_step(
    build: Build, open_loader: OpenLoader, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    student, before = build(1), weights(build(1))
    with pytest.raises(CheckpointError, match=r"state\.safetensors cannot be written"):
        distill(student, build(), open_loader(), config(steps=1), out_dir=tmp_path / "file")
    assert same(before, weights(student))
    assert (tmp_path / "file").read_text() == "mine"
