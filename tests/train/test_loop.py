import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn

from tests.train.conftest import same, weights
from vitslim.data import AugmentConfig, DataConfig, Loader, open_data
from vitslim.errors import CheckFailedError, CheckpointError, ConfigError, MissingDependencyError
from vitslim.models import preprocessing
from vitslim.progress import Progress
from vitslim.train import DistillConfig, TrainResult, distill
from vitslim.train.attention import quick_gradients
from vitslim.train.settings import resolve_precision

Build = Callable[..., nn.Module]
OpenLoader = Callable[..., Loader]


def config(**changes: Any) -> DistillConfig:
    plain: dict[str, Any] = {
        "ce_weight": 1.0, "kd_weight": 0.0, "steps": 8, "lr": 2e-3, "precision": "fp32", "log_every": 2,
        "checkpoint_every": 2, "tensorboard": False,
    }  # fmt: skip
    return DistillConfig(**{**plain, **changes})


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class Interrupted(Exception):
    """What stops a run from outside."""


def stop_at(step: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.done == step:
            raise Interrupted

    return report


def train(student: nn.Module, loader: Loader, settings: DistillConfig, **options: Any) -> TrainResult:
    return distill(student, None, loader, settings, **options)


def test_training_fits_a_few_images(build: Build, open_loader: OpenLoader) -> None:
    student = build()
    loader = open_loader(batch_size=16, limit=16, augment=AugmentConfig(hflip=0.0, shift=0.0))
    result = train(student, loader, config(steps=30, log_every=30))
    first = train(build(), loader, config(steps=1, log_every=1)).losses["ce"]
    last = train(student, loader, config(steps=1, log_every=1, lr=1e-9)).losses["ce"]
    assert last < 0.3 * first
    assert not student.training
    assert (result.steps, result.images, result.stopped) == (30, 480, "finished")


def test_a_resumed_run_ends_with_the_very_same_weights(build: Build, open_loader: OpenLoader, tmp_path: Path) -> None:
    """Order of the images, augmentation, mixup, dropout, schedule, optimiser, average: all are taken up exactly."""
    settings = config(mixup=0.8, cutmix=1.0, ema_decay=0.9, accumulate=2, label_smoothing=0.1)
    augment = AugmentConfig(erase=0.5)
    whole = build(drop_path_rate=0.3, proj_drop_rate=0.1)
    expected = train(whole, open_loader(augment=augment), settings, val_loader=open_loader("val"))
    with pytest.raises(Interrupted):
        train(
            build(drop_path_rate=0.3, proj_drop_rate=0.1), open_loader(augment=augment), settings,
            val_loader=open_loader("val"), out_dir=tmp_path, progress=stop_at(6),
        )  # fmt: skip
    torch.manual_seed(99)  # what was drawn elsewhere in between must not matter
    resumed = build(seed=5, drop_path_rate=0.3, proj_drop_rate=0.1)
    found = train(
        resumed, open_loader(augment=augment), settings, val_loader=open_loader("val"), out_dir=tmp_path, resume=True
    )
    assert same(weights(whole), weights(resumed))
    assert found.evaluations == expected.evaluations
    assert (found.steps, found.images) == (expected.steps, expected.images)
    steps = [line["step"] for line in lines(tmp_path) if line["event"] == "train"]
    assert steps == [2, 4, 6, 8]  # the step that was made twice stands once


@pytest.mark.parametrize("optimizer", ["lamb", "adan"])
def test_an_optimizer_that_counts_its_own_steps_is_resumed_too(
    build: Build, open_loader: OpenLoader, tmp_path: Path, optimizer: str
) -> None:
    whole, resumed = build(), build()
    train(whole, open_loader(), config(optimizer=optimizer))
    with pytest.raises(Interrupted):
        train(build(), open_loader(), config(optimizer=optimizer), out_dir=tmp_path, progress=stop_at(6))
    train(resumed, open_loader(), config(optimizer=optimizer), out_dir=tmp_path, resume=True)
    assert same(weights(whole), weights(resumed))


def test_a_new_run_is_not_resumed_from_the_state_of_an_older_one(
    build: Build, open_loader: OpenLoader, tmp_path: Path
) -> None:
    other, student, expected = build(seed=7), build(), build()
    train(other, open_loader(), config(), out_dir=tmp_path)
    with pytest.raises(Interrupted):  # before it has written a state
        train(build(), open_loader(), config(), out_dir=tmp_path, progress=stop_at(2))
    train(student, open_loader(), config(), out_dir=tmp_path, resume=True)
    train(expected, open_loader(), config())
    assert same(weights(student), weights(expected))
    assert not same(weights(student), weights(other))


def test_a_refused_run_leaves_the_state_of_an_older_one(build: Build, open_loader: OpenLoader, tmp_path: Path) -> None:
    train(build(), open_loader(), config(), out_dir=tmp_path)
    state = (tmp_path / "state.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="unknown optimizer"):
        train(build(), open_loader(), config(optimizer="adamv"), out_dir=tmp_path)
    assert (tmp_path / "state.safetensors").read_bytes() == state


def test_a_paused_run_ends_with_the_very_same_weights(build: Build, open_loader: OpenLoader, tmp_path: Path) -> None:
    """Unlike the time limit a pause changes nothing of what is learned, and it comes at any step."""
    settings = config(checkpoint_every=100, log_every=100)
    whole, parts = build(), build()
    train(whole, open_loader(), settings)
    asked: list[None] = []

    def after_three() -> bool:
        asked.append(None)
        return len(asked) % 3 == 0

    steps: list[int] = []
    for _ in range(3):
        result = train(parts, open_loader(), settings, out_dir=tmp_path, resume=True, pause=after_three)
        steps.append(result.steps)
    assert steps == [3, 6, 8]
    assert result.stopped == "finished"
    assert same(weights(whole), weights(parts))
    assert [line["event"] for line in lines(tmp_path)] == ["start", "resume", "resume", "train", "end"]


def test_a_finished_run_is_not_made_again(build: Build, open_loader: OpenLoader, tmp_path: Path) -> None:
    student, again = build(), build(seed=5)
    train(student, open_loader(), config(), out_dir=tmp_path)
    log = (tmp_path / "log.jsonl").read_text()
    result = train(again, open_loader(), config(), out_dir=tmp_path, resume=True)
    assert same(weights(student), weights(again))
    assert result.steps == 8
    assert (tmp_path / "log.jsonl").read_text() == log


def test_other_settings_or_images_do_not_continue_a_run(build: Build, open_loader: OpenLoader, tmp_path: Path) -> None:
    train(build(), open_loader(), config(), out_dir=tmp_path)
    with pytest.raises(CheckpointError, match=r"another run: lr was 0.002, now 0.1; resume with the old settings"):
        train(build(), open_loader(), config(lr=0.1), out_dir=tmp_path, resume=True)
    with pytest.raises(CheckpointError, match=r"data.images was 40, now 16"):
        train(build(), open_loader(limit=16), config(), out_dir=tmp_path, resume=True)
    shallower = build(depth=3)
    before = weights(shallower)
    misfit = r"does not fit this run .it is of another model: 12 of 44 tensors differ, the first is blocks.3"
    with pytest.raises(CheckpointError, match=misfit):
        train(shallower, open_loader(), config(), out_dir=tmp_path, resume=True)
    assert same(weights(shallower), before)
    with pytest.raises(CheckpointError, match=r"another run: teacher was None, now 'a ViT'"):
        train(build(), open_loader(), config(), out_dir=tmp_path, resume=True, facts={"teacher": "a ViT"})


@pytest.mark.parametrize("damage", [b"", b"not a state", None])
def test_a_damaged_state_is_refused(
    build: Build, open_loader: OpenLoader, tmp_path: Path, damage: bytes | None
) -> None:
    train(build(), open_loader(), config(steps=2), out_dir=tmp_path)
    path = tmp_path / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-100] if damage is None else damage)
    with pytest.raises(CheckpointError, match="remove it to start anew"):
        train(build(), open_loader(), config(steps=2), out_dir=tmp_path, resume=True)


def test_a_diverged_loss_stops_the_run_and_names_the_last_good_state(
    build: Build, open_loader: OpenLoader, tmp_path: Path
) -> None:
    student, other = build(), build()

    def poison(model: nn.Module) -> Callable[[Progress], None]:
        def report(progress: Progress) -> None:
            if progress.done == 4:
                model.get_parameter("head.weight").data.fill_(math.nan)

        return report

    # The report of step 4 comes before its state is written: the state of step 2 is the last good one.
    settings = config(checkpoint_every=3)
    with pytest.raises(CheckFailedError, match=r"step 5 of 8: the loss is .*nan.*the last good state is .*lower lr"):
        train(student, open_loader(), settings, out_dir=tmp_path, progress=poison(student))
    resumed = build()
    train(resumed, open_loader(), settings, out_dir=tmp_path, resume=True)
    assert all(torch.isfinite(tensor).all() for tensor in resumed.state_dict().values())
    with pytest.raises(CheckFailedError, match="no state was written yet"):
        train(other, open_loader(), settings, progress=poison(other))


def test_the_weights_are_untouched_by_a_gradient_that_is_not_finite(build: Build, open_loader: OpenLoader) -> None:
    student = build()
    before = weights(student)
    student.get_parameter("blocks.0.attn.qkv.weight").register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(CheckFailedError, match="the gradient's norm is"):
        train(student, open_loader(), config())
    assert same(before, weights(student))


def test_a_step_beyond_the_largest_number_is_no_result(build: Build, open_loader: OpenLoader, tmp_path: Path) -> None:
    """The loss of the last step is finite; only the weights that it leaves are not."""
    settings = config(steps=1, lr=1e30, warmup=0.0, optimizer="sgd", clip_grad=None)
    student = build()
    student.get_parameter("head.weight").register_hook(lambda gradient: torch.full_like(gradient, 1e10))
    with pytest.raises(CheckFailedError, match=r"step 1 of 1: head.weight became NaN or infinite .*no state"):
        train(student, open_loader(), settings, out_dir=tmp_path)
    assert not (tmp_path / "state.safetensors").exists()


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_a_model_with_nan_is_refused_before_the_first_step(
    build: Build, open_loader: OpenLoader, tmp_path: Path, role: str
) -> None:
    models = {"student": build(), "teacher": build(seed=1)}
    models[role].get_parameter("blocks.2.mlp.fc1.weight").data[3, 4] = math.nan
    with pytest.raises(ConfigError, match=f"the {role}'s blocks.2.mlp.fc1.weight holds NaN or infinity"):
        distill(models["student"], models["teacher"], open_loader(), config(kd_weight=1.0), out_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_that_were_skipped_before_an_interruption_still_count(build: Build, tmp_path: Path) -> None:
    for index in range(24):
        path = tmp_path / "images" / f"class{index % 4}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (10 * index, 0, 0)).save(path)
    for index in (5, 6, 7):
        (tmp_path / "images" / f"class{index % 4}" / f"{index}.png").write_bytes(b"no image")

    def opened() -> Loader:
        data = DataConfig(source=str(tmp_path / "images"), max_corrupt_share=0.5)
        return open_data(data, split="train", preprocessing=preprocessing(build()), batch_size=8, training=True)

    with pytest.raises(Interrupted):  # a pass has three batches
        train(build(), opened(), config(), out_dir=tmp_path / "out", progress=stop_at(6))
    for index in (5, 6, 7):
        Image.new("RGB", (32, 32)).save(tmp_path / "images" / f"class{index % 4}" / f"{index}.png")
    result = train(build(), opened(), config(), out_dir=tmp_path / "out", resume=True)
    assert result.corrupt == 3
    assert {Path(name).name for name in result.examples} == {"5.png", "6.png", "7.png"}


def test_accumulated_batches_equal_one_large_batch(build: Build, open_loader: OpenLoader) -> None:
    still = AugmentConfig(hflip=0.0, shift=0.0)
    one, two = build(), build()
    train(one, open_loader(batch_size=16, augment=still), config(steps=2))
    train(two, open_loader(batch_size=8, augment=still), config(steps=2, accumulate=2))
    for name, tensor in weights(one).items():
        # Adam divides by the gradient's size, so rounding of tiny gradients shows at the scale of lr.
        torch.testing.assert_close(tensor, two.state_dict()[name], atol=1e-4, rtol=0, msg=name)


def test_the_time_limit_ends_the_schedule_too(build: Build, open_loader: OpenLoader, tmp_path: Path) -> None:
    result = train(build(), open_loader(), config(steps=10**6, max_minutes=0.01, log_every=1), out_dir=tmp_path)
    assert result.stopped == "time"
    assert 0 < result.steps < 10**6
    rates = [line["lr"] for line in lines(tmp_path) if line["event"] == "train"]
    assert rates[-1] < 0.7 * max(rates)
    again = train(
        build(), open_loader(), config(steps=10**6, max_minutes=0.01, log_every=1), out_dir=tmp_path, resume=True
    )
    assert again.steps == result.steps


def test_the_log_tells_the_circumstances_every_pass_and_the_end(
    build: Build, open_loader: OpenLoader, tmp_path: Path
) -> None:
    result = train(build(), open_loader(), config(steps=12), val_loader=open_loader("val"), out_dir=tmp_path)
    events = lines(tmp_path)
    start, end = events[0], events[-1]
    assert start["event"] == "start"
    assert start["settings"]["lr"] == 2e-3
    assert start["data"] == {"origin": "fractals (train)", "images": 40, "batches": 5}
    assert start["trained_parameters"] == sum(parameter.numel() for parameter in build().parameters())
    assert {"loss", "lr", "grad_norm", "img_per_s", "parts", "seconds", "epoch"} <= events[1].keys()
    found = [(line["step"], line["epoch"]) for line in events if line["event"] == "eval"]
    assert found == [(5, 1.0), (10, 2.0), (12, 2.4)]
    assert [evaluation["step"] for evaluation in result.evaluations] == [5, 10, 12]
    assert end["event"] == "end"
    assert end["stopped"] == "finished"
    assert end["images"] == 96


def test_progress_tells_speed_and_time_left(build: Build, open_loader: OpenLoader) -> None:
    reports: list[Progress] = []
    train(build(), open_loader(), config(), progress=reports.append)
    assert [(report.done, report.total, report.unit) for report in reports] == [(n, 8, "step") for n in (2, 4, 6, 8)]
    assert {"loss", "ce", "lr", "img_per_s", "eta_s", "grad_norm"} <= reports[0].metrics.keys()
    assert reports[-1].metrics["eta_s"] == 0


def test_the_average_of_the_weights_is_what_comes_back(build: Build, open_loader: OpenLoader) -> None:
    plain, averaged = build(), build()
    train(plain, open_loader(), config())
    train(averaged, open_loader(), config(ema_decay=0.999))
    assert not same(weights(plain), weights(averaged))


def test_tensorboard_gets_the_same_numbers(build: Build, open_loader: OpenLoader, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(build(), open_loader(), config(steps=2, tensorboard=True), out_dir=tmp_path)
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_missing_accelerate_is_named_with_its_extra(
    build: Build, open_loader: OpenLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "accelerate", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vitslim\[train\]'"):
        train(build(), open_loader(), config())


def test_epochs_and_steps_together_are_refused() -> None:
    with pytest.raises(ValidationError, match="epochs=2 and steps=8 are both given"):
        config(epochs=2)
    with pytest.raises(ValidationError, match="extra_forbidden"):
        config(learning_rate=1.0)


def test_an_unknown_optimizer_is_refused_before_anything_is_written(
    build: Build, open_loader: OpenLoader, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="unknown optimizer"):
        train(build(), open_loader(), config(optimizer="adamv"), out_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bf16_learns_as_float32_does(build: Build, open_loader: OpenLoader) -> None:
    losses = [train(build(), open_loader(), config(precision=p)).losses["ce"] for p in ("fp32", "bf16")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)  # bf16 has 8 bits of mantissa
    assert resolve_precision("fp32", torch.device("cpu")) == "fp32"
    assert resolve_precision("auto", torch.device("meta")) == "fp32"


def test_quick_attention_computes_the_same_and_is_undone(build: Build) -> None:
    model = build()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = model(images)
    attention = model.get_submodule("blocks.0.attn")
    with quick_gradients(model, torch.device("cpu")):
        assert attention.fused_attn is False
        torch.testing.assert_close(model(images), expected)
    assert attention.fused_attn is True
