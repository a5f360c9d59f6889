"""What a training run is given, what it reports at the end."""

from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from vitslim.shapes import Config, Result

MAX_STEPS = 10**9
MAX_FACTOR = 1e30  # of what multiplies weights: beyond, float32 overflows inside the optimisers

TrainPrecision = Literal["fp32", "bf16"]
"""What autocast computes in; parameters and optimiser stay float32."""


class LoopConfig(Config):
    """How long and how fast to train; the defaults fit fine-tuning a pretrained model."""

    epochs: float | None = Field(default=None, gt=0, le=1e6)  # passes over the images; with neither epochs nor steps: 1
    steps: int | None = Field(default=None, gt=0, le=MAX_STEPS)  # optimiser steps, instead of epochs
    max_minutes: float | None = Field(default=None, gt=0)  # stop after this long; the schedule ends with it
    optimizer: str = "adamw"  # a name of timm's
    lr: float = Field(default=5e-4, gt=0, le=MAX_FACTOR)  # highest learning rate
    min_lr: float = Field(default=0.0, ge=0, le=MAX_FACTOR)  # learning rate at the end
    schedule: str = "cosine"  # a name of timm's
    warmup: float = Field(default=0.05, ge=0, lt=1)  # share of the steps with a rising learning rate
    weight_decay: float = Field(default=0.05, ge=0, le=MAX_FACTOR)  # of matrices; vectors have none
    layer_decay: float | None = Field(
        default=None, gt=0, le=1
    )  # factor on the learning rate per layer away from the output
    new_lr_scale: float = Field(
        default=1.0, gt=0, le=1e6
    )  # factor on the learning rate of modules that the dense model did not have
    clip_grad: float | None = Field(default=1.0, gt=0, le=MAX_FACTOR)  # largest norm of the gradient
    accumulate: int = Field(default=1, ge=1, le=10_000)  # batches per optimiser step
    ema_decay: float | None = Field(default=None, gt=0, lt=1)  # keep and return an average of the weights
    precision: Literal["auto", "fp32", "bf16"] = "auto"  # autocast; "auto": bf16 where the device computes in it
    compile: bool = False  # torch.compile; pays after some minutes
    log_every: int = Field(default=20, ge=1)  # optimiser steps per line of the log
    checkpoint_every: int = Field(default=500, ge=1)  # optimiser steps
    eval_every_epochs: int = Field(default=1, ge=1)  # passes between two evaluations; there is always one at the end
    tensorboard: bool = True  # write its files beside log.jsonl
    seed: int = Field(default=0, ge=0, lt=2**63)

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
    seconds: float  # training and evaluation, over all starts
    images_per_second: float
    parameters: int  # trained ones
    precision: TrainPrecision
    stopped: Literal["finished", "time", "paused"]  # paused: the state waits to be resumed
    losses: dict[str, float]  # mean of each part over the last logged steps
    evaluations: list[dict[str, float]]  # step, epoch, and what `evaluate` found
    corrupt: int  # different images that could not be read and were skipped
    examples: tuple[str, ...] = ()  # names of the first few of them
    step_losses_before: dict[int, float] | None = None  # warm start: per step, on the same batches before and after
    step_losses_after: dict[int, float] | None = None


def resolve_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> TrainPrecision:
    """Whether to compute in bf16: what is asked for, or what the device has units for."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    fast = device.type == "cpu" and torch.cpu.get_capabilities().get("avx512_bf16", False)
    return "bf16" if fast else "fp32"
