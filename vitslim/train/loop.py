"""The training loop: one for fitting new modules, distilling, training from scratch."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from vitslim.data.batch import Batch, Loader
from vitslim.data.randomness import seeded
from vitslim.errors import CheckFailedError, CheckpointError, DataError, MissingDependencyError
from vitslim.progress import Progress, ProgressCallback, silent
from vitslim.shapes import Config, Result
from vitslim.train.attention import quick_gradients
from vitslim.train.journal import Journal
from vitslim.train.optim import make_optimizer, make_schedule, parameter_groups, planned_steps
from vitslim.train.state import STATE_FILE, RunState, read_run_state, restore_state, save_state

# What may differ between a run and its continuation: none of it changes what is learned from the next batch.
FREE_TO_CHANGE = frozenset(
    {"max_minutes", "log_every", "checkpoint_every", "eval_every_epochs", "tensorboard", "compile"}
)


class LoopConfig(Config):
    """How long and how fast to train; the defaults fit fine-tuning a pretrained model."""

    epochs: float | None = Field(default=None, gt=0)  # passes over the images; with neither epochs nor steps: 1
    steps: int | None = Field(default=None, gt=0)  # optimiser steps, instead of epochs
    max_minutes: float | None = Field(default=None, gt=0)  # stop after this long; the schedule ends with it
    optimizer: str = "adamw"  # a name of timm's
    lr: float = Field(default=5e-4, gt=0)  # highest learning rate
    min_lr: float = Field(default=0.0, ge=0)  # learning rate at the end
    schedule: str = "cosine"  # a name of timm's
    warmup: float = Field(default=0.05, ge=0, lt=1)  # share of the steps with a rising learning rate
    weight_decay: float = Field(default=0.05, ge=0)  # of matrices; vectors have none
    layer_decay: float | None = Field(
        default=None, gt=0, le=1
    )  # factor on the learning rate per layer away from the output
    new_lr_scale: float = Field(
        default=1.0, gt=0
    )  # factor on the learning rate of modules that the dense model did not have
    clip_grad: float | None = Field(default=1.0, gt=0)  # largest norm of the gradient
    accumulate: int = Field(default=1, ge=1)  # batches per optimiser step
    ema_decay: float | None = Field(default=None, gt=0, lt=1)  # keep and return an average of the weights
    precision: Literal["auto", "bf16", "no"] = "auto"  # autocast; "auto": bf16 where the device computes in it
    compile: bool = False  # torch.compile; pays after some minutes
    log_every: int = Field(default=20, ge=1)  # optimiser steps per line of the log
    checkpoint_every: int = Field(default=500, ge=1)  # optimiser steps
    eval_every_epochs: int = Field(default=1, ge=1)  # passes between two evaluations; there is always one at the end
    tensorboard: bool = True  # write its files beside log.jsonl
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_length(self) -> "LoopConfig":
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"epochs={self.epochs:g} and steps={self.steps} are both given; give one")
        return self


class TrainResult(Result):
    """What a training stage did."""

    stage: str
    settings: dict[str, Any]
    steps: int  # optimiser steps made in all
    planned_steps: int
    epochs: float
    images: int  # images trained on, repeats counted
    seconds: float  # training and evaluation, over all sittings
    images_per_second: float
    parameters: int  # trained ones
    precision: str
    stopped: Literal["finished", "time"]
    losses: dict[str, float]  # mean of each part over the last logged steps
    evaluations: list[dict[str, float]]  # step, epoch, and what `evaluate` found
    corrupt: int  # images that could not be read
    step_losses_before: dict[int, float] | None = None  # warm start: per step, on the same batches before and after
    step_losses_after: dict[int, float] | None = None


@runtime_checkable
class Objective(Protocol):
    """The module that is trained: it holds the student and turns a batch into parts of a loss."""

    student: nn.Module

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Images and targets for `forward`; random mixing happens here, outside of compiled code."""
        ...


@dataclass(frozen=True)
class Stage:
    """What sets one use of the loop apart from another."""

    name: str
    evaluate: Callable[[nn.Module, Callable[[Tensor], Tensor] | None], Mapping[str, float]] | None = None
    new_parameters: Collection[nn.Parameter] = ()
    out_dir: Path | None = None  # takes log.jsonl, tensorboard/, state.safetensors
    resume: bool = False
    progress: ProgressCallback = silent


def train(objective: nn.Module, loader: Loader, config: LoopConfig, stage: Stage) -> TrainResult:
    """Train the student of an objective in place; it ends in evaluation mode.

    Raises:
        CheckFailedError: the loss became NaN or infinite; the student keeps its last good weights.
        CheckpointError: there is a state to resume, but of another run.
        DataError: too many images cannot be read.
    """
    run = _Run(objective, loader, config, stage)
    try:
        with quick_gradients(run.student, run.device):
            return run.go()
    finally:
        run.journal.close()


def resolve_precision(wanted: Literal["auto", "bf16", "no"], device: torch.device) -> Literal["bf16", "no"]:
    """Whether to compute in bf16: what is asked for, or what the device has units for."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    fast = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bf16" if fast else "no"


class _Run:
    """One run of the loop: what is needed from the first step to the last."""

    def __init__(self, objective: nn.Module, loader: Loader, config: LoopConfig, stage: Stage) -> None:
        self.config, self.stage, self.objective = config, stage, objective
        self.student: nn.Module = objective.get_submodule("student")
        self.device = next(self.student.parameters()).device
        self.precision = resolve_precision(config.precision, self.device)
        self.accelerator = _open_accelerator()
        self.loader = loader.share(self.accelerator.process_index, self.accelerator.num_processes)
        self.steps = planned_steps(config.epochs, config.steps, len(self.loader), config.accumulate)
        self.optimizer, self.schedule = self._make_optimizer()
        self.average = _make_average(self.student, config.ema_decay)
        if config.compile:
            objective.compile()
        self.model: nn.Module = self.accelerator.prepare_model(objective, device_placement=False)
        self.folder = stage.out_dir if self.accelerator.is_main_process else None
        self.state = self._resumed() if stage.resume else None
        board = config.tensorboard
        resumed = None if self.state is None else self.state.step
        self.state = self.state or RunState(stage=stage.name, settings=_settings(config), data=_describe(loader))
        self.journal = Journal(self.folder, resumed_step=resumed, tensorboard=board)

    def go(self) -> TrainResult:
        """Make the steps that are left."""
        assert self.state is not None
        state, started = self.state, time.perf_counter()
        before = state.seconds
        window = _Window()
        self.journal.write("resume" if state.step else "start", state.step, **self._circumstances())
        batches = self._batches(state)
        is_late = False
        while state.step < self.steps and not is_late and not state.finished:
            self._set_learning_rate(state)
            losses, gradient_norm, epoch, position, images = self._step(batches, state.step)
            seconds = before + time.perf_counter() - started
            is_new_pass = position == len(self.loader)
            state = state.model_copy(
                update={
                    "step": state.step + 1,
                    "epoch": epoch + is_new_pass,
                    "batch": 0 if is_new_pass else position,
                    "images": state.images + images * self.accelerator.num_processes,
                    "seconds": seconds,
                }
            )
            window.add(losses, images * self.accelerator.num_processes)
            is_late = self._is_late(seconds)
            is_last = state.step >= self.steps or is_late
            if state.step % self.config.log_every == 0 or is_last:
                self._log(state, window, gradient_norm)
            if is_last or (is_new_pass and state.epoch % self.config.eval_every_epochs == 0):
                state = self._evaluate(state)
                state = state.model_copy(update={"seconds": before + time.perf_counter() - started})
                window.restart_clock()
            if is_last or state.step % self.config.checkpoint_every == 0:
                self._save(state.model_copy(update={"finished": is_last}))
        return self._finish(state, window, is_late)

    # --- one step ------------------------------------------------------------------------------------------------

    def _step(
        self, batches: Iterator[tuple[int, int, Batch]], step: int
    ) -> tuple[dict[str, float], float, int, int, int]:
        """One optimiser step: mean parts of the loss, norm of the gradient, place in the data, images seen."""
        self.model.train()
        totals: dict[str, float] = {}
        images, epoch, position = 0, 0, 0
        with seeded(self.config.seed, step, self.accelerator.process_index):
            for micro in range(self.config.accumulate):
                epoch, position, batch = next(batches)
                is_inner = micro + 1 < self.config.accumulate
                with self.accelerator.no_sync(self.model) if is_inner else nullcontext():
                    parts = self._backward(batch.to(self.device), step)
                images += len(batch)
                for name, value in parts.items():
                    totals[name] = totals.get(name, 0.0) + value / self.config.accumulate
        norm = self._gradient_norm()
        if not math.isfinite(norm):
            raise self._diverged(step, f"the gradient's norm is {norm}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.student, step=step + 1)
        return totals, norm, epoch, position, images

    def _backward(self, batch: Batch, step: int) -> dict[str, float]:
        images, targets = self.objective.prepare(batch)  # pyright: ignore[reportCallIssue]  see Objective
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16"):
            parts: dict[str, Tensor] = self.model(images, targets)
        loss = torch.stack(list(parts.values())).sum()
        values = dict(zip(parts, torch.stack([part.detach().float() for part in parts.values()]).tolist(), strict=True))
        if not all(math.isfinite(value) for value in values.values()):
            raise self._diverged(step, f"the loss is {values}")
        (loss / self.config.accumulate).backward()
        return values

    def _gradient_norm(self) -> float:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        limit = self.config.clip_grad or math.inf
        return float(nn.utils.clip_grad_norm_(parameters, limit))

    def _diverged(self, step: int, what: str) -> CheckFailedError:
        path = None if self.stage.out_dir is None else self.stage.out_dir / STATE_FILE
        kept = f"the last good state is {path}" if path is not None and path.exists() else "no state was written yet"
        return CheckFailedError(
            f"{self.stage.name}, step {step + 1} of {self.steps}: {what} (lr={self.config.lr:g}, "
            f"precision={self.precision}); {kept}; lower lr, lengthen warmup, or set precision='no'"
        )

    def _batches(self, state: RunState) -> Iterator[tuple[int, int, Batch]]:
        """Batches without end, each with its pass and the number of the batch that follows it."""
        epoch, start = state.epoch, state.batch
        while True:
            self.loader.set_epoch(epoch, start)
            is_empty = True
            for batch in self.loader:
                is_empty = False
                yield epoch, self.loader.position, batch
            if is_empty and start == 0:
                raise DataError(f"{self.loader.origin}: a whole pass gave no batch; no image could be read")
            epoch, start = epoch + 1, 0

    # --- learning rate, time -------------------------------------------------------------------------------------

    def _make_optimizer(self) -> tuple[Optimizer, Any]:
        config = self.config
        groups = parameter_groups(
            self.student,
            weight_decay=config.weight_decay,
            layer_decay=config.layer_decay,
            new_parameters=self.stage.new_parameters,
            new_lr_scale=config.new_lr_scale,
        )
        optimizer = make_optimizer(groups, config.optimizer, config.lr, config.weight_decay)
        warmup_steps = min(round(config.warmup * self.steps), self.steps - 1)
        schedule = make_schedule(
            optimizer,
            config.schedule,
            steps=self.steps,
            lr=config.lr,
            min_lr=config.min_lr,
            warmup_steps=warmup_steps,
        )
        return optimizer, schedule

    def _set_learning_rate(self, state: RunState) -> None:
        """Follow the schedule by steps, or by the clock where the time will end first."""
        done = float(state.step)
        if self.config.max_minutes is not None:
            done = max(done, self.steps * state.seconds / (60 * self.config.max_minutes))
        self.schedule.step_update(min(int(done), self.steps - 1))

    def _is_late(self, seconds: float) -> bool:
        if self.config.max_minutes is None:
            return False
        return any(self._from_all(float(seconds >= 60 * self.config.max_minutes)))

    def _from_all(self, value: float) -> list[float]:
        if self.accelerator.num_processes == 1:
            return [value]
        return self.accelerator.gather(torch.tensor([value], device=self.device)).tolist()

    # --- record --------------------------------------------------------------------------------------------------

    def _circumstances(self) -> dict[str, Any]:
        trained = sum(p.numel() for group in self.optimizer.param_groups for p in group["params"])
        return {
            "stage": self.stage.name,
            "settings": _settings(self.config),
            "data": _describe(self.loader),
            "planned_steps": self.steps,
            "steps_per_pass": len(self.loader) / self.config.accumulate,
            "trained_parameters": trained,
            "precision": self.precision,
            "device": str(self.device),
            "processes": self.accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def _log(self, state: RunState, window: "_Window", gradient_norm: float) -> None:
        means, speed = window.close()
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        values = {"loss": sum(means.values()), "lr": rate, "grad_norm": gradient_norm, "img_per_s": speed}
        pass_number = state.epoch + state.batch / max(1, len(self.loader))
        self.journal.write("train", state.step, epoch=pass_number, **values, parts=means, seconds=state.seconds)
        left = state.seconds / max(1, state.step) * (self.steps - state.step)
        if self.config.max_minutes is not None:
            left = min(left, 60 * self.config.max_minutes - state.seconds)
        metrics = {**values, **means, "eta_s": max(0.0, left)}
        self.stage.progress(Progress(self.stage.name, state.step, self.steps, "step", metrics))

    def _evaluate(self, state: RunState) -> RunState:
        if self.stage.evaluate is None:
            return state
        model = self.student if self.average is None else self.average.module
        reduce = None if self.accelerator.num_processes == 1 else self.accelerator.reduce
        found = {name: float(value) for name, value in self.stage.evaluate(model, reduce).items()}
        values = {"epoch": state.epoch + state.batch / max(1, len(self.loader)), **found}
        self.journal.write("eval", state.step, **values, seconds=state.seconds)
        return state.model_copy(update={"evaluations": (*state.evaluations, {"step": float(state.step), **values})})

    def _save(self, state: RunState) -> None:
        if self.folder is not None:
            average = None if self.average is None else self.average.module
            save_state(self.folder / STATE_FILE, state, self.student, average, self.optimizer)

    def _resumed(self) -> RunState | None:
        path = None if self.stage.out_dir is None else self.stage.out_dir / STATE_FILE
        if path is None or not path.exists():
            return None
        state = read_run_state(path)
        _check_same_run(path, state, self.stage.name, _settings(self.config), _describe(self.loader))
        average = None if self.average is None else self.average.module
        restore_state(path, self.student, average, self.optimizer)
        return state

    def _finish(self, state: RunState, window: "_Window", is_late: bool) -> TrainResult:
        if self.average is not None:
            self.student.load_state_dict(self.average.module.state_dict())
        self.student.eval()
        trained = sum(p.numel() for group in self.optimizer.param_groups for p in group["params"])
        result = TrainResult(
            stage=self.stage.name,
            settings=_settings(self.config),
            steps=state.step,
            planned_steps=self.steps,
            epochs=state.images / max(1, self.loader.num_images),
            images=state.images,
            seconds=state.seconds,
            images_per_second=state.images / max(state.seconds, 1e-9),
            parameters=trained,
            precision=self.precision,
            stopped="time" if is_late and state.step < self.steps else "finished",
            losses=window.last,
            evaluations=[dict(evaluation) for evaluation in state.evaluations],
            corrupt=self.loader.corrupt.count,
        )
        self.journal.write("end", state.step, **result.model_dump(exclude={"settings", "evaluations"}))
        return result


class _Window:
    """Means and speed over the steps since the last line of the log."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._steps, self._images, self._seconds = 0, 0, 0.0
        self._clock = time.perf_counter()

    def add(self, losses: Mapping[str, float], images: int) -> None:
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        now = time.perf_counter()
        self._seconds += now - self._clock
        self._clock = now
        self._steps += 1
        self._images += images

    def restart_clock(self) -> None:
        """Leave out the time since the last step: it went into something else."""
        self._clock = time.perf_counter()

    def close(self) -> tuple[dict[str, float], float]:
        """Mean parts of the loss, images per second."""
        self.last = {name: value / self._steps for name, value in self._sums.items()}
        speed = self._images / max(self._seconds, 1e-9)
        self._sums, self._steps, self._images, self._seconds = {}, 0, 0, 0.0
        return self.last, speed


def _open_accelerator() -> Any:
    try:
        from accelerate import Accelerator
    except ImportError:
        raise MissingDependencyError("training needs accelerate: pip install 'vitslim[train]'") from None
    # It starts and joins processes. Precision is ours: accelerate fixes it once per process, a run of two stages
    # may want two; bf16 needs no gradient scaling. Devices are ours: a model trains where it lies.
    return Accelerator(mixed_precision="no", device_placement=False)


def _make_average(student: nn.Module, decay: float | None) -> Any:
    if decay is None:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(student, decay=decay, use_warmup=True)


def _settings(config: LoopConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _describe(loader: Loader) -> dict[str, Any]:
    return {"origin": loader.origin, "images": loader.num_images, "batches": len(loader)}


def _check_same_run(
    path: Path, state: RunState, stage: str, settings: Mapping[str, Any], data: Mapping[str, Any]
) -> None:
    """Refuse to continue a run under other settings: it would be neither the old run nor a new one."""
    wanted = {"stage": stage, **settings, **{f"data.{name}": value for name, value in data.items()}}
    found = {"stage": state.stage, **state.settings, **{f"data.{name}": value for name, value in state.data.items()}}
    changes = [
        f"{name} was {found.get(name)!r}, now {wanted.get(name)!r}"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name) and name not in FREE_TO_CHANGE
    ]
    if changes:
        raise CheckpointError(
            f"{path} belongs to another run: {'; '.join(changes)}; resume with the old settings, "
            "or start anew without resume"
        )
