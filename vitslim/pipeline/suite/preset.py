"""Presets of the benchmarks, read from YAML: what is timed, and for the accuracy benchmark how it is trained before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from vitslim.bench.clock import MIN_ROUNDS
from vitslim.bench.session import Backend
from vitslim.bench.suite import DENSE, FINE_TUNED, SMALLER, TEACHER, Benchmark, Case, GainTarget
from vitslim.data import FractalConfig
from vitslim.errors import ConfigError
from vitslim.kernels.dispatch import Family, TritonMode
from vitslim.methods import MethodConfig, read_method
from vitslim.pipeline.baselines import BASELINES
from vitslim.recipe import read_settings_file, with_overrides
from vitslim.runtime import Precision
from vitslim.shapes import Config
from vitslim.train import DistillConfig, WarmStartConfig
from vitslim.validation import validated

PRESETS: Mapping[Benchmark, Sequence[str]] = {"suite": ("cpu", "gpu", "headline"), "accuracy": ("cpu", "gpu")}
TIMING = ("device", "threads", "rounds", "warmup", "seconds", "energy")

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-zA-Z0-9_.+-]*$")]  # that a folder can have


class ModelEntry(Config):
    """A model of a benchmark."""

    name: str | None = None  # timm name or alias; the key by default
    options: dict[str, Any] = Field(default_factory=dict)  # further arguments of the timm model
    smaller: str | None = None  # the sibling that competes as ``smaller-sibling``


def _config(entry: Any) -> MethodConfig:
    try:
        options = {**entry}
        return read_method(options.pop("method", None), options)[1]
    except (ConfigError, TypeError) as error:
        raise ValueError(f"{error}; wanted {{method: NAME, option: value, ...}}") from None


class Competitor(Config):
    """A conversion, or several in a row, that competes with the dense model."""

    convert: tuple[Annotated[MethodConfig, BeforeValidator(_config)], ...] = Field(min_length=1)  # as in a recipe
    plan: dict[str, Any] | None = None  # what the conversions have made of the model, where an analysis decided on it
    kernels: Family | None = None  # those of ours that it can run on; ``triton`` compares with and without
    warm_start: bool = False  # where it is trained: fit what no end-to-end gradient reaches, or shares weights, first


class Group(Config):
    """Cases that share all but what is listed, sizes outermost."""

    models: tuple[str, ...] = ()
    sizes: tuple[PositiveInt, ...] = Field(default=(224,), min_length=1)  # pixels
    precisions: tuple[Precision, ...] = Field(default=("fp32",), min_length=1)
    also: tuple[Precision, ...] = ()  # further ones, timed in the rounds of each of the others
    backends: tuple[Backend, ...] = Field(default=("torch",), min_length=1)
    batches: tuple[PositiveInt, ...] = Field(default=(1,), min_length=1)
    competitors: tuple[str, ...] = ()
    kernels: tuple[PositiveInt, ...] = ()  # numbers of tokens; the group is of kernels then
    quick: bool = False  # whether --quick measures it

    @model_validator(mode="after")
    def _is_of_models_or_kernels(self) -> Group:
        if bool(self.models) == bool(self.kernels):
            raise ValueError("a group names models, or under kernels the numbers of tokens, and not both")
        if self.also and (self.kernels or {*self.also} & {*self.precisions} or len({*self.also}) < len(self.also)):
            raise ValueError(
                f"also: wanted precisions of models beside {', '.join(self.precisions)}, each once, given "
                f"{', '.join(self.also)}"
            )
        return self

    def cases(self) -> list[Case]:
        """The product of what is listed."""
        if self.kernels:
            settings = product(self.precisions, self.batches)
            return [Case(precision=precision, batch=batch, tokens=self.kernels) for precision, batch in settings]
        names = ("image_size", "model", "precision", "backend", "batch")
        settings = product(self.sizes, self.models, self.precisions, self.backends, self.batches)
        shared = {"competitors": self.competitors, "also": self.also}
        return [Case.model_validate(dict(zip(names, one, strict=True)) | shared) for one in settings]


class Training(Config):
    """How the models of the accuracy benchmark are trained, one teacher and all that learn from it."""

    data: FractalConfig  # the built-in images, drawn while training
    batch_size: int = Field(default=256, ge=2)
    teacher: DistillConfig  # how the teacher and the smaller sibling learn the labels, from nothing
    budget: DistillConfig  # what every student and the fine-tuned baseline get
    warm_start: WarmStartConfig = WarmStartConfig()
    analyze_images: int = Field(default=256, ge=8)  # where a method leaves something to an analysis


class Preset(Config):
    """The settings of a benchmark."""

    device: str = "cpu"
    threads: int = Field(default=1, ge=1)
    rounds: int = Field(default=30, ge=MIN_ROUNDS)  # samples per competitor
    warmup: int = Field(default=3, ge=1)
    seconds: float | None = Field(default=None, gt=0)  # time limit of one case's rounds
    energy: bool = False
    models: dict[str, ModelEntry]
    competitors: dict[Name, Competitor] = Field(default_factory=dict)
    groups: tuple[Group, ...] = Field(min_length=1)
    targets: tuple[GainTarget, ...] = ()
    training: Training | None = None  # of the accuracy benchmark, whose groups are of one model
    # Of the cases that are CUDA graphs of torch's those competitors alone that have kernels, once in each of the modes.
    triton: tuple[TritonMode, ...] = ()
    quick: tuple[str, ...] = ()  # changes of a quick run, such as rounds=5
    define: Any = None  # lists that others repeat

    @model_validator(mode="after")
    def _is_consistent(self) -> Preset:
        if taken := sorted({TEACHER, FINE_TUNED, DENSE, SMALLER, *BASELINES} & {*self.competitors}):
            raise ValueError(f"competitors are called {', '.join(taken)}, which are other rows of the tables")
        for group in self.groups:
            unknown = sorted({*group.models} - {*self.models})
            unknown += sorted({*group.competitors} - {*self.competitors, *BASELINES, SMALLER})
            if unknown:
                raise ValueError(f"groups name {', '.join(unknown)}, which are neither models nor competitors here")
        cases = self.cases()
        lost = [repr(one.what) for one in self.targets if not any(map(one.is_measured_by, cases))]
        if lost and not self.triton:
            raise ValueError(f"targets {', '.join(lost)}: nothing here measures what they are of")
        if self.training is not None and len({case.model for case in cases}) > 1:
            raise ValueError("groups name several models; the accuracy benchmark trains one teacher")
        return self

    @property
    def timing(self) -> dict[str, Any]:
        """What every case depends on beside its own fields."""
        return self.model_dump(include={*TIMING})

    @property
    def students(self) -> list[str]:
        """Everything that is trained beside the teacher, in order."""
        return [FINE_TUNED, *dict.fromkeys(name for case in self.cases() for name in case.competitors)]

    def cases(self, *, quick: bool = False) -> list[Case]:
        """What is to be measured, the most telling first.

        What several groups ask for is measured once, where the first does, with the competitors of all: a late group
        may name a whole grid.
        """
        found: dict[str, Case] = {}
        for case in (case for group in self.groups if group.quick or not quick for case in group.cases()):
            known = found.get(case.name, case)
            competitors = tuple(dict.fromkeys((*known.competitors, *case.competitors)))
            tokens = tuple(sorted({*known.tokens, *case.tokens}))
            found[case.name] = known.model_copy(update={"competitors": competitors, "tokens": tokens})
        if not self.triton:
            return list(found.values())
        own = {name for name, one in self.competitors.items() if one.kernels is not None}
        compared = [
            case.model_copy(update={"competitors": kept, "triton": self.triton})
            for case in found.values()
            if case.backend == "compiled-graph" and (kept := tuple(name for name in case.competitors if name in own))
        ]
        if not compared:
            raise ValueError("triton: no case of compiled-graph has a competitor with kernels of ours (kernels: ...)")
        return compared


def read_preset(kind: Benchmark, name: str, *, quick: bool = False, overrides: Iterable[str] = ()) -> Preset:
    """A preset by its name, or out of a YAML file of the same form.

    Args:
        quick: with the changes that the preset has for a quick run.
        overrides: assignments such as ``rounds=100``.

    Raises:
        ConfigError: no such preset, or a faulty one; all errors in one message.
    """
    shipped_names = PRESETS[kind]
    if name not in shipped_names and not Path(name).is_file():
        raise ConfigError(f"unknown preset {name!r}; wanted {', '.join(shipped_names)} or a YAML file")
    shipped = resources.files("vitslim") / "assets" / f"{kind}_{name}.yaml"
    document = read_settings_file(str(shipped) if name in shipped_names else name, "settings such as models and groups")
    found = validated(Preset, document, f"preset {name}: ")
    changes = [*(found.quick if quick else ()), *overrides]
    found = validated(Preset, with_overrides(document, changes), f"preset {name}: ")
    if (found.training is not None) != (kind == "accuracy"):
        raise ConfigError(f"preset {name}: the accuracy benchmark alone has, and needs, a section training")
    return found
