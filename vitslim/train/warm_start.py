"""Fitting new modules to the dense model, layer by layer, before anything is trained end to end."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from vitslim.data.batch import Batch, Loader
from vitslim.errors import ConfigError
from vitslim.models import trace
from vitslim.progress import ProgressCallback, silent
from vitslim.train.closed_form import fit_last_layers_
from vitslim.train.finite import fault_of_weights
from vitslim.train.freezing import only_trained
from vitslim.train.loop import Stage, train
from vitslim.train.optim import faults_of_optimizer
from vitslim.train.settings import MAX_FACTOR, MAX_STEPS, LoopConfig, TrainResult, resolve_precision
from vitslim.train.state import STATE_FILE
from vitslim.trunk import Trunk, is_converted, trunk_of

MEASURED_BATCHES = 4  # batches on which the losses before and after are compared


class WarmStartConfig(LoopConfig):
    """A few hundred quick steps: every new module has its own small regression problem."""

    steps: int | None = Field(default=300, gt=0, le=MAX_STEPS)
    lr: float = Field(default=2e-3, gt=0, le=MAX_FACTOR)
    weight_decay: float = Field(default=0.0, ge=0, le=MAX_FACTOR)
    closed_form_batches: int = Field(default=16, ge=0)  # batches of the least squares for last linear layers; 0: none


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

    Each module reads what the dense model computed (teacher forcing) and imitates what the dense model made of it,
    so no gradient flows from one step to another. Where a module ends in a linear layer, its best weights for the
    module's start are solved for first; then all parameters are trained.

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
    faults = [*faults_of_optimizer(config), fault_of_weights(student, "student"), fault_of_weights(teacher, "teacher")]
    if any(faults):
        raise ConfigError("; ".join(fault for fault in faults if fault is not None))
    batches = list(islice(loader, MEASURED_BATCHES))
    new = list(trunk.new_parameters().values())
    precision = resolve_precision(config.precision, new[0].device)
    before = _measure(trunk, teacher, batches, precision == "bf16")
    folder = None if out_dir is None else Path(out_dir)
    stage = Stage("warm_start", out_dir=folder, resume=resume, progress=progress, pause=pause)
    if not (resume and stage.out_dir is not None and (stage.out_dir / STATE_FILE).exists()):
        _solve(trunk, teacher, loader, config)
    with only_trained(student, new):
        result = train(_Imitation(student, teacher), loader, config, stage)
    after = _measure(trunk, teacher, batches, precision == "bf16")
    return result.model_copy(update={"step_losses_before": before, "step_losses_after": after})


class _Imitation(nn.Module):
    """Teacher-forced losses of all steps with new modules."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student = student
        self._teacher = (teacher.eval(),)  # in a tuple: no submodule, so neither trained nor saved

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        return batch.images, None

    def forward(self, images: Tensor, targets: Tensor | None) -> dict[str, Tensor]:
        losses = trunk_of(self.student).local_loss(trace(self._teacher[0], images))
        return {f"step_{step}": loss for step, loss in losses.items()}


def _solve(trunk: Trunk, teacher: nn.Module, loader: Loader, config: WarmStartConfig) -> None:
    # In full precision: the sums cancel, and there are few batches.
    device = next(trunk.parameters()).device
    batches = islice(loader, config.closed_form_batches)
    fit_last_layers_(trunk, (trace(teacher, batch.to(device).images) for batch in batches))


def _trunk_to_fit(student: nn.Module) -> Trunk:
    if not is_converted(student):
        raise ConfigError(f"warm start: this {type(student).__name__} is dense; convert it first (vitslim.convert)")
    trunk = trunk_of(student)
    if not trunk.new_parameters():
        raise ConfigError("warm start: the conversion added no parameters, so there is nothing to fit; skip this stage")
    return trunk


def _measure(trunk: Trunk, teacher: nn.Module, batches: list[Batch], reduced: bool) -> dict[int, float]:
    """Mean loss of each step over some batches."""
    device = next(trunk.parameters()).device
    sums: dict[int, float] = {}
    with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=reduced):
        for batch in batches:
            for step, loss in trunk.local_loss(trace(teacher, batch.to(device).images)).items():
                sums[step] = sums.get(step, 0.0) + float(loss) / len(batches)
    return sums
