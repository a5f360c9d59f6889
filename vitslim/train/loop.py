"""The training loop: one for fitting new modules, distilling, training from scratch."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vitslim.data.batch import MAX_EXAMPLES, Batch, Loader
from vitslim.data.randomness import seeded
from vitslim.errors import CheckFailedError, CheckpointError, DataError
from vitslim.files import require_writable
from vitslim.progress import Progress, ProgressCallback, silent
from vitslim.train.attention import quick_gradients
from vitslim.train.finite import not_finite
from vitslim.train.log import RunLog, Window
from vitslim.train.optim import make_optimizer, make_schedule, parameter_groups, planned_steps
from vitslim.train.processes import Processes, ending_together, open_accelerator, started_processes
from vitslim.train.settings import LoopConfig, TrainPrecision, TrainResult, resolve_precision
from vitslim.train.state import STATE_FILE, RunState, check_same_run, read_run_state, restore_state, save_state


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
    evaluate: Callable[[nn.Module, Processes], Mapping[str, float]] | None = None
    new_parameters: Collection[nn.Parameter] = ()
    adapt: Callable[[nn.Module, float], None] | None = None  # what the model becomes at this share of the run, 0..1
    out_dir: Path | None = None  # takes log.jsonl, tensorboard/, state.safetensors
    resume: bool = False
    facts: Mapping[str, str] = field(default_factory=dict[str, str])  # what a resumed run must have the same, by name
    progress: ProgressCallback = silent
    pause: Callable[[], bool] | None = None  # asked after every step; the run stops with its state, to be resumed


def train(objective: nn.Module, loader: Loader, config: LoopConfig, stage: Stage) -> TrainResult:
    """Train the student of an objective in place; it ends in evaluation mode.

    Raises:
        CheckFailedError: the loss became NaN or infinite, and the student keeps its last good weights; or the weights
            did; or another process of the run ended.
        CheckpointError: there is a state to resume, but of another run or of another number of processes.
        ConfigError: an optimizer or schedule that is not known, or processes that cannot be joined.
        DataError: too many images cannot be read.
    """
    with ending_together(started_processes()):
        run = _Run(objective, loader, config, stage)
        try:
            with quick_gradients(run.student, run.device):
                return run.go()
        finally:
            run.log.close()


class _Run:
    """One run of the loop: what is needed from the first step to the last."""

    def __init__(self, objective: nn.Module, loader: Loader, config: LoopConfig, stage: Stage) -> None:
        self.config, self.stage, self.objective = config, stage, objective
        self.student: nn.Module = objective.get_submodule("student")
        self.device = next(self.student.parameters()).device
        self.precision: TrainPrecision = resolve_precision(config.precision, self.device)
        self.accelerator = open_accelerator(self.device)
        self.processes = Processes(self.accelerator.process_index, self.accelerator.num_processes)
        self.loader = loader.share(self.processes.rank, self.processes.count)
        self.steps = planned_steps(config.epochs, config.steps, len(self.loader), config.accumulate)
        self.optimizer, self.schedule = self._make_optimizer()
        self.average = _make_average(self.student, config.ema_decay)
        if config.compile:
            objective.compile()
        self.model: nn.Module = self.accelerator.prepare_model(objective, device_placement=False)
        self.folder = stage.out_dir if self.processes.is_main else None
        if self.folder is not None:
            require_writable(self.folder / STATE_FILE)
        self.state = RunState(
            stage=stage.name,
            settings=_settings(config),
            data=_describe(loader),
            facts=dict(stage.facts),
            processes=self.processes.count,
        )
        found = self._resumed() if stage.resume else None
        if found is None and self.folder is not None:
            # Until this run has a state of its own, nobody should resume another one in its place.
            (self.folder / STATE_FILE).unlink(missing_ok=True)
        self.state = found or self.state
        resumed_step = None if found is None else found.step
        self.log = RunLog(self.folder, resumed_step=resumed_step, tensorboard=config.tensorboard)

    def go(self) -> TrainResult:
        """Make the steps that are left."""
        state, window, started = self.state, Window(), time.perf_counter()
        earlier = state.seconds
        is_late = self._is_late(state.seconds)
        is_paused = False
        if not state.finished:
            self.log.write("resume" if state.step else "start", state.step, **self._circumstances())
        batches = self._batches(state)
        while state.step < self.steps and not is_late and not is_paused:
            self._set_learning_rate(state)
            self._adapt(self._done(state) / self.steps)
            taken = self._step(batches, state.step)
            state = self._advance(state, taken, self._clock(earlier + time.perf_counter() - started))
            window.add(taken.losses, taken.images * self.processes.count)
            is_late = self._is_late(state.seconds)
            is_last = state.step >= self.steps or is_late
            is_paused = not is_last and self._wants_pause()
            if is_last:
                self._adapt(1.0)
            if is_last or state.step % self.config.log_every == 0:
                self._log(state, window, taken.gradient_norm)
            is_measured = is_last or (state.batch == 0 and state.epoch % self.config.eval_every_epochs == 0)
            is_saved = is_last or is_paused or state.step % self.config.checkpoint_every == 0
            if is_measured or is_saved:
                self._check_weights(state)
            if is_measured:
                state = self._evaluate(state)
                seconds = self._clock(earlier + time.perf_counter() - started)
                state = state.model_copy(update={"seconds": seconds})
                window.restart_clock()
            if is_saved:
                state = self._save(state)
        return self._finish(state, window)

    def _advance(self, state: RunState, taken: "_Step", seconds: float) -> RunState:
        is_pass_over = taken.position >= len(self.loader)
        place = (taken.epoch + 1, 0) if is_pass_over else (taken.epoch, taken.position)
        return state.model_copy(
            update={
                "step": state.step + 1,
                "epoch": place[0],
                "batch": place[1],
                "images": state.images + taken.images * self.processes.count,
                "seconds": seconds,
                "finished": state.step + 1 >= self.steps,
            }
        )

    # --- one step ------------------------------------------------------------------------------------------------

    def _step(self, batches: Iterator[tuple[int, int, Batch]], step: int) -> "_Step":
        """One optimiser step, over as many batches as are accumulated."""
        self.model.train()
        taken = _Step()
        with seeded(self.config.seed, step, self.processes.rank):
            for micro in range(self.config.accumulate):
                taken.epoch, taken.position, batch = next(batches)
                is_inner = micro + 1 < self.config.accumulate
                with self.accelerator.no_sync(self.model) if is_inner else nullcontext():
                    parts = self._backward(batch.to(self.device), step)
                taken.images += len(batch)
                for name, value in parts.items():
                    taken.losses[name] = taken.losses.get(name, 0.0) + value / self.config.accumulate
        taken.gradient_norm = self._gradient_norm()
        if not math.isfinite(taken.gradient_norm):
            raise self._diverged(step, f"the gradient's norm is {taken.gradient_norm}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(self.student, step=step + 1)
        return taken

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
            f"precision={self.precision}); {kept}; lower lr, lengthen warmup, or set precision='fp32'"
        )

    def _check_weights(self, state: RunState) -> None:
        # A gradient that is finite can still make a step beyond the largest number.
        if bad := not_finite(self.student):
            raise self._diverged(state.step - 1, f"{bad[0]} became NaN or infinite")

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
        self.schedule.step_update(int(self._done(state)))

    def _done(self, state: RunState) -> float:
        """How far the run is, in steps, or by the clock where the time will end first; below their number."""
        done = float(state.step)
        if self.config.max_minutes is not None:
            done = max(done, self.steps * state.seconds / (60 * self.config.max_minutes))
        return min(done, float(self.steps - 1))

    def _adapt(self, share: float) -> None:
        """Let the student, and its average, become what they are at this share of the run."""
        if self.stage.adapt is not None:
            for model in (self.student, *(() if self.average is None else (self.average.module,))):
                self.stage.adapt(model, share)

    def _is_late(self, seconds: float) -> bool:
        return self.config.max_minutes is not None and seconds >= 60 * self.config.max_minutes

    def _clock(self, seconds: float) -> float:
        """The main process's seconds where they decide anything: all must end, and learn, at the same step alike."""
        if self.config.max_minutes is None:
            return seconds
        elapsed = torch.tensor(seconds if self.processes.is_main else 0.0, dtype=torch.float64, device=self.device)
        return float(self.processes.add_up(elapsed))

    def _wants_pause(self) -> bool:
        if self.stage.pause is None:
            return False
        asked = torch.tensor(float(self.stage.pause()), device=self.device)
        return bool(self.processes.add_up(asked) > 0)

    # --- record --------------------------------------------------------------------------------------------------

    def _circumstances(self) -> dict[str, Any]:
        return {
            "stage": self.stage.name,
            "settings": _settings(self.config),
            "data": self.state.data,
            "planned_steps": self.steps,
            "steps_per_pass": len(self.loader) / self.config.accumulate,
            "trained_parameters": self._trained_parameters(),
            "precision": self.precision,
            "device": str(self.device),
            "processes": self.processes.count,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def _log(self, state: RunState, window: Window, gradient_norm: float) -> None:
        means, speed = window.close()
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        values = {"loss": sum(means.values()), "lr": rate, "grad_norm": gradient_norm, "img_per_s": speed}
        pass_number = state.epoch + state.batch / max(1, len(self.loader))
        self.log.write("train", state.step, epoch=pass_number, **values, parts=means, seconds=state.seconds)
        left = state.seconds / max(1, state.step) * (self.steps - state.step)
        if self.config.max_minutes is not None:
            left = min(left, 60 * self.config.max_minutes - state.seconds)
        metrics = {**values, **means, "eta_s": max(0.0, left)}
        self.stage.progress(Progress(self.stage.name, state.step, self.steps, "step", metrics))

    def _evaluate(self, state: RunState) -> RunState:
        if self.stage.evaluate is None:
            return state
        model = self.student if self.average is None else self.average.module
        found = self.stage.evaluate(model, self.processes)
        values = {"epoch": state.epoch + state.batch / max(1, len(self.loader)), **found}
        self.log.write("eval", state.step, **values, seconds=state.seconds)
        return state.model_copy(update={"evaluations": (*state.evaluations, {"step": float(state.step), **values})})

    def _save(self, state: RunState) -> RunState:
        state = state.model_copy(update={"unreadable": self._unreadable(state)})
        if self.folder is not None:
            average = None if self.average is None else self.average.module
            save_state(self.folder / STATE_FILE, state, self.student, average, self.optimizer)
        return state

    def _unreadable(self, state: RunState) -> tuple[str, ...]:
        """Names of the images that no process could read, each once, those before an interruption among them."""
        found = self.processes.gather(self.loader.unreadable)
        return tuple(dict.fromkeys([*state.unreadable, *(name for names in found for name in names)]))

    def _resumed(self) -> RunState | None:
        if self.stage.out_dir is None:
            return None
        path = self.stage.out_dir / STATE_FILE
        found = read_run_state(path) if path.exists() else None
        steps = self.processes.gather(None if found is None else found.step)
        if len({*steps}) > 1:
            raise CheckpointError(
                f"{path}: the processes find states of different steps there ({steps}); all must share one file system"
            )
        if found is not None:
            check_same_run(path, found, self.state)
            average = None if self.average is None else self.average.module
            restore_state(path, self.student, average, self.optimizer)
        return found

    def _finish(self, state: RunState, window: Window) -> TrainResult:
        if self.average is not None:
            self.student.load_state_dict(self.average.module.state_dict())
        self.student.eval()
        unreadable = self._unreadable(state)
        result = TrainResult(
            stage=self.stage.name,
            settings=_settings(self.config),
            steps=state.step,
            planned_steps=self.steps,
            epochs=state.images / max(1, self.loader.num_images),
            images=state.images,
            seconds=state.seconds,
            images_per_second=state.images / max(state.seconds, 1e-9),
            parameters=self._trained_parameters(),
            precision=self.precision,
            stopped=self._reason(state),
            losses=window.last,
            evaluations=[dict(evaluation) for evaluation in state.evaluations],
            corrupt=len(unreadable),
            examples=unreadable[:MAX_EXAMPLES],
        )
        if window.last and result.stopped != "paused":  # a run that was finished before has written its end
            self.log.write("end", state.step, **result.model_dump(exclude={"settings", "evaluations"}))
        return result

    def _reason(self, state: RunState) -> Literal["finished", "time", "paused"]:
        if state.step >= self.steps:
            return "finished"
        return "time" if self._is_late(state.seconds) else "paused"

    def _trained_parameters(self) -> int:
        return sum(parameter.numel() for group in self.optimizer.param_groups for parameter in group["params"])


@dataclass
class _Step:
    """What one optimiser step saw."""

    losses: dict[str, float] = field(default_factory=dict[str, float])  # mean of each part
    gradient_norm: float = 0.0
    epoch: int = 0
    position: int = 0  # batches taken from the pass
    images: int = 0


def _make_average(student: nn.Module, decay: float | None) -> Any:
    if decay is None:
        return None
    from timm.utils import ModelEmaV3

    return ModelEmaV3(student, decay=decay, use_warmup=True)


def _settings(config: LoopConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _describe(loader: Loader) -> dict[str, Any]:
    return {"origin": loader.origin, "images": loader.num_images, "batches": len(loader)}
