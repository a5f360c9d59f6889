"""Fitting new modules to the dense model, layer by layer, before anything is trained end to end."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from vitslim.data.batch import Batch, Loader
from vitslim.errors import ConfigError
from vitslim.models import trace
from vitslim.models.stream_width import covariances, narrow_stream_, stream_maps
from vitslim.progress import ProgressCallback, silent
from vitslim.train.closed_form import fit_in_closed_form_
from vitslim.train.finite import weights_error
from vitslim.train.freezing import only_trained
from vitslim.train.loop import Stage, train
from vitslim.train.optim import optimizer_errors
from vitslim.train.settings import MAX_FACTOR, MAX_STEPS, LoopConfig, TrainResult, resolve_precision
from vitslim.train.state import STATE_FILE
from vitslim.trunk import Trunk, at_plan_size, build, is_converted, trunk_of
from vitslim.trunk.axes import AxisModule

MEASURED_BATCHES = 4  # batches on which the losses before and after are compared


class WarmStartConfig(LoopConfig):
    """A closed form, then a few hundred quick steps: every new module has its own small regression problem."""

    steps: int | None = Field(default=300, ge=0, le=MAX_STEPS)  # 0: the closed form alone
    lr: float = Field(default=2e-3, gt=0, le=MAX_FACTOR)
    weight_decay: float = Field(default=0.0, ge=0, le=MAX_FACTOR)
    closed_form_batches: int = Field(default=16, ge=0)  # batches of the least squares; 0: none


def warm_start(
    student: nn.Module,
    teacher: nn.Module,
    loader: Loader,
    config: WarmStartConfig,
    *,
    out_dir: str | Path | None = None,
    resume: bool = False,
    progress: ProgressCallback = silent,
    pause: Callable[[], bool] | None = None,
) -> TrainResult:
    """Fit all new modules of a converted model at once; no labels are needed and nothing else changes.

    What has best weights in closed form is solved for first, from the front: narrowed layers, linear stand-ins, last
    layers of new modules. Then those modules train that have an imitation loss: each reads what the dense model
    computed (teacher forcing) and imitates what it made of that, so no gradient flows from one step to another.

    Args:
        student: a converted model, trained in place; it ends in evaluation mode.
        teacher: the dense model that it was made from, on the same device.
        out_dir: takes log.jsonl, tensorboard/ and state.safetensors.
        pause: asked after every step; when it says so, the run writes its state and ends as "paused".

    Raises:
        ConfigError: the student is dense, has nothing to fit, one of the models holds NaN, or an optimiser or schedule
            is not known.
        CheckFailedError: a loss became NaN or infinite, or another process of the run ended.
    """
    trunk = _trunk_to_fit(student)
    errors = [*optimizer_errors(config), weights_error(student, "student"), weights_error(teacher, "teacher")]
    if any(errors):
        raise ConfigError("; ".join(error for error in errors if error is not None))
    student.eval()
    teacher = dense_at_size_of(student, teacher.eval())
    device = next(student.parameters()).device
    precision = resolve_precision(config.precision, device)
    folder = None if out_dir is None else Path(out_dir)
    batches = list(islice(loader, MEASURED_BATCHES))
    is_resumed = resume and folder is not None and (folder / STATE_FILE).exists()
    images = (at_plan_size(student, batch.to(device).images) for batch in islice(loader, config.closed_form_batches))
    if trunk.model_plan.width is not None:
        images = list(images)  # they are read twice
        teacher = on_stream_of_(student, teacher, covariances(teacher, images), sets=not is_resumed)
    before = _measure(student, teacher, batches, precision == "bf16")
    started = time.monotonic()
    solved: dict[int, tuple[float, float]] = {}
    if not is_resumed:
        # In full precision: the sums cancel, and there are few batches.
        solved = fit_in_closed_form_(student, teacher, images)
    if before and config.steps != 0:
        stage = Stage("warm_start", out_dir=folder, resume=resume, progress=progress, pause=pause)
        with only_trained(student, _trained(trunk)):
            result = train(_Imitation(student, teacher), loader, config, stage)
    elif not solved and not before and (trunk.model_plan.width is None or not config.closed_form_batches):
        raise ConfigError(
            "warm start: the conversion left nothing to fit"
            + ("; skip this stage" if config.closed_form_batches else " by gradients; give closed_form_batches")
        )
    else:
        result = _solved_alone(loader, config, time.monotonic() - started)
    after = _measure(student, teacher, batches, precision == "bf16")
    return result.model_copy(
        update={
            "step_losses_before": {step: error for step, (error, _) in solved.items()} | before,
            "step_losses_after": {step: error for step, (_, error) in solved.items()} | after,
        }
    )


def _trained(trunk: Trunk) -> list[nn.Parameter]:
    """What the imitation losses reach."""
    axes = [axis for step in trunk.all_steps() for axis in step.axes]
    reached = [axis for axis in axes if type(axis).local_loss is not AxisModule.local_loss]
    return [parameter for axis in reached for parameter in axis.parameters()]


def _solved_alone(loader: Loader, config: WarmStartConfig, seconds: float) -> TrainResult:
    """Of a stage without a gradient step."""
    images = min(config.closed_form_batches * loader.batch_size, loader.num_images)
    return TrainResult(
        stage="warm_start",
        settings=config.model_dump(mode="json"),
        steps=0,
        planned_steps=0,
        epochs=images / max(1, loader.num_images),
        images=images,
        seconds=seconds,
        images_per_second=images / max(seconds, 1e-9),
        parameters=0,
        precision="fp32",
        stopped="finished",
        losses={},
        evaluations=[],
        corrupt=0,
    )


class _Imitation(nn.Module):
    """Teacher-forced losses of all steps with new modules."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher.eval(),)  # in a tuple: no submodule, so neither trained nor saved

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return at_plan_size(self.student, batch.images), None

    def forward(self, images: Tensor, targets: Tensor | None) -> dict[str, Tensor]:
        losses = trunk_of(self.student).local_loss(trace(self._teacher[0], images))
        return {f"step_{step}": loss for step, loss in losses.items()}


def _trunk_to_fit(student: nn.Module) -> Trunk:
    if not is_converted(student):
        raise ConfigError(f"warm start: this {type(student).__name__} is dense; convert it first (vitslim.convert)")
    return trunk_of(student)


def dense_at_size_of(student: nn.Module, teacher: nn.Module) -> nn.Module:
    """The dense model at a student's image size, where that is another: a copy, whose blocks are imitated."""
    plan = trunk_of(student).model_plan
    if plan.image_size == plan.model.image_size:
        return teacher
    resized = copy.deepcopy(teacher)
    cast(Any, resized).set_input_size(img_size=plan.image_size)
    return resized


def on_stream_of_(
    student: nn.Module, teacher: nn.Module, measured: Sequence[tuple[Tensor, Tensor]], *, sets: bool = True
) -> nn.Module:
    """The dense model on a student's narrower stream, chosen by what was measured; the student is put onto the same.

    Args:
        teacher: the dense model at the student's image size.
        measured: its ``covariances``; none for those of what its blocks write.
        sets: whether the student's own weights are set anew, as they are to be before anything is fitted.

    Raises:
        ConfigError: they have been trained since the conversion, and would be lost.
    """
    trunk = trunk_of(student)
    plan, known = trunk.model_plan, measured or None
    assert plan.width is not None
    if sets:
        fresh = build(plan, teacher, measured=known).state_dict()
        _refuse_trained(student, fresh)
        own = {f"blocks.{name}" for name in trunk.new_parameters()}
        student.load_state_dict({name: value for name, value in fresh.items() if name not in own}, strict=False)
    narrowed = copy.deepcopy(teacher)
    blocks: list[nn.Module] = list(narrowed.blocks)  # pyright: ignore[reportArgumentType]
    narrow_stream_(narrowed, dict(enumerate(blocks)), trunk.adapter, plan.width, known)
    return narrowed


def _refuse_trained(student: nn.Module, fresh: Mapping[str, Tensor]) -> None:
    """Refuse a student whose weights around the blocks, which its stream leaves alone, are not those it was given."""
    around = {id(linear.weight) for linear in stream_maps(student)}
    for name, value in student.named_parameters():
        if not name.startswith("blocks.") and id(value) not in around and not torch.equal(value, fresh[name].to(value)):
            raise ConfigError(
                f"warm start: the directions of the narrower stream are chosen anew, but {name} has been trained since "
                "the conversion; warm up first and train then, or name all methods in one conversion of the dense model"
            )


def _measure(student: nn.Module, teacher: nn.Module, batches: list[Batch], reduced: bool) -> dict[int, float]:
    """Mean loss of each step over some batches."""
    trunk, device = trunk_of(student), next(student.parameters()).device
    sums: dict[int, float] = {}
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=reduced):
        for batch in batches:
            for step, loss in trunk.local_loss(trace(teacher, at_plan_size(student, batch.to(device).images))).items():
                sums[step] = sums.get(step, 0.0) + float(loss) / len(batches)
    return sums
