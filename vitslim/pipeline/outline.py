"""What a run is about to do, for whoever starts it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field
from torch import nn

from vitslim.data import AugmentConfig, Loader
from vitslim.models import Preprocessing, preprocessing
from vitslim.pipeline.choices import Choice
from vitslim.shapes import Result
from vitslim.train import LoopConfig


class ImageOutline(Result):
    """The images of a run, and how they become the model's input.

    Attributes:
        train: number of training images; None where nothing is trained.
        held_out: number of those that are measured on.
        augment: the changes of training images that are on, by the field of ``AugmentConfig``.
    """

    source: str
    train: int | None
    held_out: int
    classes: int | None
    preprocessing: Preprocessing
    augment: dict[str, Any]


class Budget(Result):
    """One training: its name, ``epochs`` or ``steps``, images per batch."""

    stage: str
    epochs: float | None
    steps: int | None
    batch_size: int


class Outline(Result):
    """What a run is about to do.

    Attributes:
        teacher: None where the model itself or nobody teaches.
        planning: what is measured first, in words, where the plan has to be found.
        planning_seconds: about how long that takes.
    """

    model: str
    methods: list[str]
    teacher: str | None
    images: ImageOutline | None
    budget: list[Budget]
    planning: list[str] = Field(default_factory=list[str])
    planning_seconds: float = 0.0


Announce = Callable[[Outline | list[Choice]], None]


def keep_quiet(news: Outline | list[Choice]) -> None:
    """Take news and say nothing: the default of every ``announce`` argument."""


def outline_images(
    source: str, model: nn.Module, train: Loader | None, held_out: Loader, augment: AugmentConfig | None
) -> ImageOutline:
    """The outline of loaders that are open; ``augment`` is None where nothing is trained."""
    built_in = source == "fractals" or source.startswith("fractals:")
    return ImageOutline(
        source=source,
        train=None if train is None else train.num_images,
        held_out=held_out.num_images,
        classes=held_out.num_classes,
        preprocessing=preprocessing(model),
        augment={} if augment is None else augment.changes(built_in=built_in),
    )


def budget_of(stage: str, config: LoopConfig, batch_size: int) -> Budget:
    """How long a training lasts; with neither epochs nor steps it is one pass."""
    epochs = 1.0 if config.epochs is None and config.steps is None else config.epochs
    return Budget(stage=stage, epochs=epochs, steps=config.steps, batch_size=batch_size * config.accumulate)
