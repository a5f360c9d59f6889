"""Presets of the accuracy benchmark: the task, the budget, the students, read from a YAML file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, cast

from pydantic import Field, PositiveInt, ValidationError, model_validator

from vitslim.bench.contest import Backend
from vitslim.bench.suite import DENSE, SMALLER, Aim
from vitslim.data import FractalConfig
from vitslim.errors import ConfigError
from vitslim.pipeline.baselines import BASELINES
from vitslim.pipeline.suite.preset import Competitor, ModelEntry, read_preset_file
from vitslim.recipe import with_overrides
from vitslim.runtime import Precision
from vitslim.shapes import Config
from vitslim.train import DistillConfig, WarmStartConfig
from vitslim.validation import describe_faults

Baseline = Literal["depth-drop", "lower-resolution", "smaller-sibling"]

CONTROL = "dense-control"
TEACHER = "teacher"
SPEED_FOLDER = "speed"
_NAME = re.compile(r"[a-z0-9][\w.+-]*", re.ASCII)
_RESERVED = {CONTROL, TEACHER, SPEED_FOLDER, DENSE, SMALLER, *BASELINES}


class Student(Competitor):
    """A conversion with what it needs beside the common budget."""

    warm_start: bool = False  # fit the new modules first: what no end-to-end gradient reaches, or shares weights


class Task(Config):
    """The built-in images, drawn while training; see ``FractalConfig``."""

    classes: int = 400
    image_size: int = 224
    train_per_class: int = 4000
    val_per_class: int = 10
    seed: int = 0
    # How hard the task is.
    jitter: float = FractalConfig.jitter
    rotation: float = FractalConfig.rotation
    smallest: float = FractalConfig.smallest
    shift: float = FractalConfig.shift
    noise: float = FractalConfig.noise
    negatives: float = FractalConfig.negatives

    def fractals(self) -> FractalConfig:
        """The images themselves."""
        return FractalConfig(**self.model_dump())


class Speed(Config):
    """Where the students' latencies are measured; as a group and settings of the suite."""

    precisions: tuple[Precision, ...] = Field(default=("fp32",), min_length=1)
    backends: tuple[Backend, ...] = Field(default=("torch",), min_length=1)
    batches: tuple[PositiveInt, ...] = Field(default=(1, 8), min_length=1)
    rounds: int = Field(default=30, ge=5)
    warmup: int = Field(default=3, ge=1)
    seconds: float | None = Field(default=None, gt=0)
    threads: int = Field(default=1, ge=1)
    energy: bool = False


class AccuracyPreset(Config):
    """All that the accuracy benchmark is told."""

    device: str = "cpu"
    model: ModelEntry  # the teacher's
    sibling: ModelEntry | None = None  # the smaller dense model, trained from nothing as the teacher is
    data: Task = Task()
    batch_size: int = Field(default=256, ge=2)
    teacher: DistillConfig  # how the teacher learns its labels, from nothing
    budget: DistillConfig  # what every student and the control get
    warm_start: WarmStartConfig = WarmStartConfig()
    analyze_images: int = Field(default=256, ge=8)  # of the analysis, where an option says auto
    students: dict[str, Student]
    baselines: tuple[Baseline, ...] = ()
    speed: Speed = Speed()
    aims: tuple[Aim, ...] = ()

    @model_validator(mode="after")
    def _has_all_it_names(self) -> AccuracyPreset:
        if "smaller-sibling" in self.baselines and self.sibling is None:
            raise ValueError("baselines name smaller-sibling, and sibling is not given")
        reserved = sorted(_RESERVED & {*self.students})
        if reserved:
            raise ValueError(
                f"students are called {', '.join(reserved)}, which are names of the teacher, the control, baselines or "
                "the speed's folder; choose others"
            )
        speed = self.speed
        for aim in self.aims:
            if aim.of != "speed" or aim.kernel:
                given = f"kernel={aim.kernel!r}" if aim.kernel else f"of={aim.of!r}"
                raise ValueError(f"aim {aim.what!r}: {given}, but accuracy is set beside the models' speed alone")
            is_timed = (
                aim.precision in speed.precisions and aim.backend in speed.backends and aim.batch in speed.batches
            )
            if not is_timed or not {*aim.competitors} <= {*self.names}:
                raise ValueError(
                    f"aim {aim.what!r}: its competitors or its setting are not those of students and speed"
                )
        # Each becomes the name of a folder.
        faulty = [name for name in self.students if not _NAME.fullmatch(name)]
        if faulty:
            raise ValueError(
                f"students are called {', '.join(map(repr, faulty))}; wanted a small letter or digit, then letters, "
                "digits, dots and + - _"
            )
        return self

    @property
    def names(self) -> list[str]:
        """Everything that is trained on the teacher's task, in order."""
        return [CONTROL, *self.students, *self.baselines]


def read_accuracy_preset(name: str, *, quick: bool = False, overrides: Iterable[str] = ()) -> AccuracyPreset:
    """A preset by its name, or out of a YAML file of the same form.

    Args:
        quick: with the changes that the preset has for a quick run.
        overrides: assignments such as ``teacher.steps=100``.

    Raises:
        ConfigError: no such preset, or a faulty one; all faults in one message.
    """
    document = read_preset_file("accuracy", name)
    changes: object = document.pop("quick", None) or []
    if not isinstance(changes, list) or not all(isinstance(one, str) for one in cast("list[object]", changes)):
        raise ConfigError(f"preset {name}: quick={changes!r}: wanted a list of changes such as budget.steps=2")
    merged = with_overrides(document, [*(cast("list[str]", changes) if quick else []), *overrides])
    try:
        return AccuracyPreset.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(f"preset {name}: {'; '.join(describe_faults(error, AccuracyPreset))}") from None
