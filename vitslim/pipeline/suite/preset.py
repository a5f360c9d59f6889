"""Presets of the benchmarks, read from YAML: what the suite times, what the accuracy benchmark trains."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, field_validator, model_validator

from vitslim.bench.clock import MIN_ROUNDS
from vitslim.bench.session import Backend, facts_of
from vitslim.bench.suite import DENSE, SMALLER, Case, GainTarget
from vitslim.data import FractalConfig
from vitslim.errors import ConfigError
from vitslim.methods import METHODS
from vitslim.pipeline.baselines import BASELINES
from vitslim.recipe import read_settings_file, with_overrides
from vitslim.runtime import Precision
from vitslim.shapes import Config
from vitslim.train import DistillConfig, WarmStartConfig
from vitslim.validation import describe_errors

PRESETS = ("cpu", "gpu")
COMPILED = ("compiled", "compiled-graph")
# Each batch size is compiled or built anew, which takes longer than the timing.
_SPLIT_BY_BATCH = (*COMPILED, "ort-tensorrt", "tensorrt", "rtx")

KERNELS = (
    *("tiles of 64", "tiles of 64, keys given", "image"),
    *("class row", "argsort by score", "gather and split", "scatter back", "selection"),
    *("convolution, expansion 2", "its gradient, expansion 2", "convolution, expansion 0.5"),
    "its gradient, expansion 0.5",
)  # that cases of kernels time, by the kernels' names; the kernels need triton to be asked

CONTROL = "dense-finetuned"  # the teacher with the budget of the students
TEACHER = "teacher"
SPEED_FOLDER = "speed"
MODELS_FOLDER = "trained"
_RESERVED = {CONTROL, TEACHER, SPEED_FOLDER, MODELS_FOLDER, DENSE, SMALLER, *BASELINES}
_NAME = re.compile(r"[a-z0-9][\w.+-]*", re.ASCII)


class ModelEntry(Config):
    """A model of a benchmark."""

    name: str | None = None  # timm name or alias; the key by default
    options: dict[str, Any] = Field(default_factory=dict)  # further arguments of the timm model
    smaller: str | None = None  # the sibling that competes as ``smaller-sibling``


class Competitor(Config):
    """A conversion, or several in a row, that competes with the dense model."""

    convert: tuple[dict[str, Any], ...] = Field(min_length=1)  # as in a recipe: {method: ..., option: ...}
    plan: dict[str, Any] | None = None  # what the conversions have made of the model, where an analysis decided on it

    @field_validator("convert")
    @classmethod
    def _has_methods(cls, convert: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        for entry in convert:
            if "method" not in entry:
                raise ValueError(f"{entry} names no method")
            try:
                METHODS.get(str(entry["method"]))
            except ConfigError as error:
                raise ValueError(str(error)) from None
        return convert

    @property
    def steps(self) -> list[tuple[str, dict[str, Any]]]:
        """Method and options of every conversion, in order."""
        return [
            (str(entry["method"]), {key: value for key, value in entry.items() if key != "method"})
            for entry in self.convert
        ]


class Student(Competitor):
    """A conversion with what it needs beside the common budget."""

    warm_start: bool = False  # fit the new modules first: what no end-to-end gradient reaches, or shares weights


class Timing(Config):
    """How models are timed."""

    threads: int = Field(default=1, ge=1)
    rounds: int = Field(default=30, ge=MIN_ROUNDS)  # samples per competitor
    warmup: int = Field(default=3, ge=1)
    seconds: float | None = Field(default=None, gt=0)  # of one batch size of one case
    energy: bool = False


class Grid(Config):
    """Settings in which models are timed: their product."""

    precisions: tuple[Precision, ...] = Field(default=("fp32",), min_length=1)
    backends: tuple[Backend, ...] = Field(default=("torch",), min_length=1)
    batches: tuple[PositiveInt, ...] = Field(default=(1,), min_length=1)

    @field_validator("batches")
    @classmethod
    def _once_each(cls, batches: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(dict.fromkeys(batches))


class Group(Grid):
    """Cases that share all but what is listed, sizes outermost."""

    models: tuple[str, ...] = ()
    sizes: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)  # pixels; 0: the model's own
    competitors: tuple[str, ...] = ()
    kernels: tuple[PositiveInt, ...] = ()  # numbers of tokens; the group is of kernels then
    quick: bool = False  # whether --quick measures it

    @model_validator(mode="after")
    def _is_of_models_or_kernels(self) -> Group:
        if bool(self.models) == bool(self.kernels):
            raise ValueError("a group names models, or under kernels the numbers of tokens, and not both")
        return self

    def cases(self) -> list[Case]:
        """The product of what is listed."""
        if self.kernels:
            return [
                Case(kind="kernels", precision=precision, batches=(batch,), tokens=self.kernels)
                for precision in self.precisions
                for batch in self.batches
            ]
        return [
            Case(
                model=model,
                image_size=size,
                precision=precision,
                backend=backend,
                batches=batches,
                competitors=self.competitors,
            )
            for size in self.sizes
            for model in self.models
            for precision in self.precisions
            for backend in self.backends
            for batches in ([(one,) for one in self.batches] if backend in _SPLIT_BY_BATCH else [self.batches])
        ]


class SuitePreset(Timing):
    """The settings of a run of the suite."""

    FILES: ClassVar[str] = "suite"
    WANTED: ClassVar[str] = "groups: [...]"

    device: str = "cpu"
    case_seconds: float = Field(default=240.0, gt=0)  # what a case is taken to need before one like it was measured
    models: dict[str, ModelEntry]
    competitors: dict[str, Competitor] = Field(default_factory=dict)
    groups: tuple[Group, ...] = Field(min_length=1)
    targets: tuple[GainTarget, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> SuitePreset:
        for group in self.groups:
            unknown = sorted({*group.models} - {*self.models})
            unknown += sorted({*group.competitors} - {*self.competitors, *BASELINES, SMALLER})
            if unknown:
                raise ValueError(f"groups name {', '.join(unknown)}, which are neither models nor competitors here")
        cases = self.cases()
        for target in self.targets:
            if target.max_loss is not None:
                raise _refusal(target, "max_loss is of the accuracy benchmark, the suite trains nothing")
            if target.of == "memory" and (not facts_of(target.backend).in_torch or not self.device.startswith("cuda")):
                raise _refusal(target, "of='memory', which is read where torch runs on a GPU alone")
            if target.kernel and target.of != "speed":
                raise _refusal(target, f"of={target.of!r}, but kernels are timed alone")
            if target.kernel and target.kernel not in KERNELS:
                raise _refusal(target, f"no kernel {target.kernel!r}; choose from {', '.join(KERNELS)}")
            _check_measured(target, cases)
        return self

    def settings(self) -> dict[str, Any]:
        """What every case depends on beside its own fields."""
        return self.model_dump(mode="json", include={"device", *Timing.model_fields})

    def cases(self, *, quick: bool = False) -> list[Case]:
        """What is to be measured, the most telling first.

        What several groups ask for is measured once, where the first does, with the competitors of all: a late group
        may name a whole grid.
        """
        found: list[Case] = []
        for case in (case for group in self.groups if group.quick or not quick for case in group.cases()):
            left = case.batches
            for index, known in enumerate(found):
                if _place(known) == _place(case) and {*known.batches} & {*left}:
                    found[index] = _united(known, case)
                    left = tuple(batch for batch in left if batch not in known.batches)
            if left:
                found.append(case.model_copy(update={"batches": left}))
        return found


class Speed(Timing, Grid):
    """Where and how the students' latencies are measured."""

    batches: tuple[PositiveInt, ...] = Field(default=(1, 8), min_length=1)


class AccuracyPreset(Config):
    """The settings of a run of the accuracy benchmark."""

    FILES: ClassVar[str] = "accuracy"
    WANTED: ClassVar[str] = "model and budget"

    device: str = "cpu"
    model: ModelEntry  # the teacher's
    sibling: ModelEntry | None = None  # the smaller dense model, trained from nothing as the teacher is
    data: FractalConfig  # the built-in images, drawn while training
    batch_size: int = Field(default=256, ge=2)
    teacher: DistillConfig  # how the teacher learns its labels, from nothing
    budget: DistillConfig  # what every student and the control get
    warm_start: WarmStartConfig = WarmStartConfig()
    analyze_images: int = Field(default=256, ge=8)  # of the analysis, where an option says auto
    students: dict[str, Student]
    baselines: tuple[Literal["depth-drop", "narrow-mlp", "lower-resolution", "smaller-sibling"], ...] = ()
    speed: Speed = Speed()
    targets: tuple[GainTarget, ...] = ()

    @model_validator(mode="after")
    def _is_consistent(self) -> AccuracyPreset:
        if SMALLER in self.baselines and self.sibling is None:
            raise ValueError("baselines name smaller-sibling, and sibling is not given")
        if reserved := sorted(_RESERVED & {*self.students}):
            raise ValueError(
                f"students are called {', '.join(reserved)}, which are names of the teacher, the control, baselines or "
                "folders of the benchmark; choose others"
            )
        # Each becomes the name of a folder.
        if faulty := [name for name in self.students if not _NAME.fullmatch(name)]:
            raise ValueError(
                f"students are called {', '.join(map(repr, faulty))}; wanted a small letter or digit, then letters, "
                "digits, dots and + - _"
            )
        grid = self.speed.model_dump(include={*Grid.model_fields})
        cases = Group(models=("-",), competitors=tuple(self.names), **grid).cases()
        for target in self.targets:
            if target.of != "speed" or target.kernel:
                given = f"kernel={target.kernel!r}" if target.kernel else f"of={target.of!r}"
                raise _refusal(target, f"{given}, but accuracy is set beside the models' speed alone")
            _check_measured(target, cases)
        return self

    @property
    def names(self) -> list[str]:
        """Everything that is trained on the teacher's task, in order."""
        return [CONTROL, *self.students, *self.baselines]


P = TypeVar("P", SuitePreset, AccuracyPreset)


def read_preset(kind: type[P], name: str, *, quick: bool = False, overrides: Iterable[str] = ()) -> P:
    """A preset by its name, or out of a YAML file of the same form.

    Args:
        quick: with the changes that the preset has for a quick run.
        overrides: assignments such as ``teacher.steps=100``.

    Raises:
        ConfigError: no such preset, or a faulty one; all errors in one message.
    """
    if name not in PRESETS and not Path(name).is_file():
        raise ConfigError(f"unknown preset {name!r}; wanted {', '.join(PRESETS)} or a YAML file")
    shipped = resources.files("vitslim") / "assets" / f"{kind.FILES}_{name}.yaml"
    document = read_settings_file(str(shipped) if name in PRESETS else name, f"settings such as {kind.WANTED}")
    document = {key: value for key, value in document.items() if key != "define"}  # lists that others repeat
    changes: object = document.pop("quick", None) or []
    if not isinstance(changes, list) or not all(isinstance(one, str) for one in cast("list[object]", changes)):
        raise ConfigError(f"preset {name}: quick={changes!r}: wanted a list of changes such as budget.steps=2")
    merged = with_overrides(document, [*(cast("list[str]", changes) if quick else []), *overrides])
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(f"preset {name}: {'; '.join(describe_errors(error, kind))}") from None


def _check_measured(target: GainTarget, cases: Sequence[Case]) -> None:
    if any(target.is_measured_by(case) for case in cases):
        return
    if target.kernel:
        raise _refusal(
            target, f"no group times kernels in {target.precision} at {target.tokens} tokens, batch {target.batch}"
        )
    raise _refusal(target, f"nothing here measures {target.competitors} in {target.setting}")


def _refusal(target: GainTarget, reason: str) -> ValueError:
    return ValueError(f"target {target.what!r}: {reason}")


def _place(case: Case) -> tuple[str, ...]:
    return case.kind, case.model, str(case.image_size), case.backend, case.precision


def _united(first: Case, second: Case) -> Case:
    competitors = tuple(dict.fromkeys((*first.competitors, *second.competitors)))
    return first.model_copy(
        update={"competitors": competitors, "tokens": tuple(sorted({*first.tokens, *second.tokens}))}
    )
