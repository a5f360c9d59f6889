"""Presets of the benchmark suite: which pieces are measured, read from a YAML file."""

from __future__ import annotations

from collections.abc import Collection
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from vitslim.bench.clock import MIN_ROUNDS
from vitslim.bench.contest import Backend, facts_of
from vitslim.bench.suite import SMALLER, Aim, Piece
from vitslim.errors import ConfigError, MissingDependencyError
from vitslim.methods import method_named
from vitslim.pipeline.baselines import BASELINES
from vitslim.pipeline.devices import device_named
from vitslim.recipe import read_settings_file
from vitslim.runtime import Precision
from vitslim.shapes import Config
from vitslim.validation import describe_faults

PRESETS = ("cpu", "gpu")
COMPILED = ("compiled", "compiled-graph")
# Each batch size is compiled or built anew, which takes longer than the timing.
SPLIT_BY_BATCH = (*COMPILED, "ort-tensorrt", "tensorrt", "rtx")

_HOLDS = {"suite": "groups: [...]", "accuracy": "model and budget"}

KERNELS = (
    *("tiles of 64", "tiles of 64, keys given", "image"),
    *("class row", "argsort by score", "gather and split", "scatter back", "selection"),
    *("convolution, expansion 2", "its gradient, expansion 2", "convolution, expansion 0.5"),
    "its gradient, expansion 0.5",
)  # that kernel pieces time, as the cases name them; those need triton to be asked


class ModelEntry(Config):
    """A model of the suite."""

    name: str | None = None  # timm name or alias; the key by default
    options: dict[str, Any] = Field(default_factory=dict)  # further arguments of the timm model
    smaller: str | None = None  # the sibling that competes as ``smaller-sibling``


class Competitor(Config):
    """A conversion, or several in a row, that competes with the dense model."""

    convert: tuple[dict[str, Any], ...] = Field(min_length=1)  # as in a recipe: {method: ..., option: ...}

    @model_validator(mode="after")
    def _has_methods(self) -> Competitor:
        for entry in self.convert:
            if "method" not in entry:
                raise ValueError(f"{entry} names no method")
            try:
                method_named(str(entry["method"]))
            except ConfigError as fault:
                raise ValueError(str(fault)) from None
        return self


class Group(Config):
    """Pieces that share all but what is listed: their product, sizes outermost."""

    models: tuple[str, ...] = ()
    sizes: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)  # pixels; 0: the model's own
    precisions: tuple[Precision, ...] = Field(default=("fp32",), min_length=1)
    backends: tuple[Backend, ...] = Field(default=("torch",), min_length=1)
    batches: tuple[PositiveInt, ...] = Field(default=(1,), min_length=1)
    competitors: tuple[str, ...] = ()
    kernels: tuple[PositiveInt, ...] = ()  # numbers of tokens; the group is of kernels then
    quick: bool = False  # whether --quick measures it

    @model_validator(mode="after")
    def _is_of_models_or_kernels(self) -> Group:
        if bool(self.models) == bool(self.kernels):
            raise ValueError("a group names models, or under kernels the numbers of tokens, and not both")
        return self


class Preset(Config):
    """All that a run of the suite is told."""

    device: str = "cpu"
    threads: int = Field(default=1, ge=1)
    rounds: int = Field(default=30, ge=MIN_ROUNDS)  # samples per competitor
    warmup: int = Field(default=3, ge=1)
    seconds: float | None = Field(default=None, gt=0)  # of one batch size of one piece
    energy: bool = False
    piece_seconds: float = Field(default=240.0, gt=0)  # what a piece is taken to need before one like it was measured
    models: dict[str, ModelEntry]
    competitors: dict[str, Competitor] = Field(default_factory=dict)
    groups: tuple[Group, ...] = Field(min_length=1)
    aims: tuple[Aim, ...] = ()

    @model_validator(mode="after")
    def _knows_all_names(self) -> Preset:
        for group in self.groups:
            unknown = sorted({*group.models} - {*self.models})
            rivals = {*self.competitors, *BASELINES, SMALLER}
            unknown += sorted({*group.competitors} - rivals)
            if unknown:
                raise ValueError(f"groups name {', '.join(unknown)}, which are neither models nor competitors here")
        return self

    @model_validator(mode="after")
    def _measures_what_it_aims_at(self) -> Preset:
        pieces = self.pieces(quick=False)
        for aim in self.aims:
            if aim.max_loss is not None:
                raise ValueError(f"aim {aim.what!r}: max_loss is of the accuracy benchmark, the suite trains nothing")
            if aim.kernel and aim.kernel not in KERNELS:
                raise ValueError(f"aim {aim.what!r}: no kernel {aim.kernel!r}; choose from {', '.join(KERNELS)}")
            if aim.kernel and aim.of != "speed":
                raise ValueError(f"aim {aim.what!r}: of={aim.of!r}, but kernels are timed alone")
            if aim.of == "memory" and (not facts_of(aim.backend).in_torch or not self.device.startswith("cuda")):
                raise ValueError(f"aim {aim.what!r}: of='memory', which is read where torch runs on a GPU alone")
            if any(_measures(piece, aim) for piece in pieces):
                continue
            if aim.kernel:
                raise ValueError(
                    f"aim {aim.what!r}: no group times kernels in {aim.precision} at {aim.tokens} tokens, batch "
                    f"{aim.batch}"
                )
            raise ValueError(f"aim {aim.what!r}: no group measures {aim.competitors} in {aim.setting}")
        return self

    def settings(self) -> dict[str, Any]:
        """What every piece depends on beside its own fields."""
        return self.model_dump(mode="json", include={"device", "threads", "rounds", "warmup", "seconds", "energy"})

    def pieces(self, *, quick: bool) -> list[Piece]:
        """What is to be measured, the most telling first.

        What several groups ask for is measured once, where the first does, with the competitors of all: a late group
        may name a whole grid.
        """
        found: list[Piece] = []
        for group in self.groups:
            for piece in _pieces(group) if group.quick or not quick else ():
                left = piece.batches
                for index, known in enumerate(found):
                    if _setting(known) == _setting(piece) and {*known.batches} & {*left}:
                        found[index] = _united(known, piece)
                        left = tuple(batch for batch in left if batch not in known.batches)
                if left:
                    found.append(piece.model_copy(update={"batches": left}))
        return found

    def aims_of(self, pieces: Collection[Piece]) -> list[Aim]:
        """The aims on which such pieces can say something: a quick run has some of them."""
        return [aim for aim in self.aims if any(_measures(piece, aim) for piece in pieces)]


def read_preset(name: str, *, quick: bool = False) -> Preset:
    """A preset by its name, or out of a YAML file of the same form.

    Args:
        quick: with the changes that the preset has for a quick run.

    Raises:
        ConfigError: no such preset, or a faulty one; all faults in one message.
    """
    document = read_preset_file("suite", name)
    changes: object = document.pop("quick", None) or {}
    if not isinstance(changes, dict):
        raise ConfigError(f"preset {name}: quick={changes!r}: wanted settings such as {{rounds: 5}}")
    try:
        return Preset.model_validate({**document, **(changes if quick else {})})
    except ValidationError as error:
        raise ConfigError(f"preset {name}: {'; '.join(describe_faults(error, Preset))}") from None


def read_preset_file(kind: Literal["suite", "accuracy"], name: str) -> dict[str, Any]:
    """What a shipped preset or a YAML file holds; ``define``, whose lists others repeat by YAML's anchors, is left out.

    Raises:
        ConfigError: no such preset, or a file of something else.
    """
    if name not in PRESETS and not Path(name).is_file():
        raise ConfigError(f"unknown preset {name!r}; wanted {', '.join(PRESETS)} or a YAML file")
    shipped = resources.files("vitslim") / "assets" / f"{kind}_{name}.yaml"
    document = read_settings_file(str(shipped) if name in PRESETS else name, f"settings such as {_HOLDS[kind]}")
    return {key: value for key, value in document.items() if key != "define"}


def require_device(device: str, preset: str) -> torch.device:
    """The device of a preset, whose name stands in the message where it is absent.

    Raises:
        MissingDependencyError: it is not there.
    """
    try:
        return device_named(device)
    except MissingDependencyError as error:
        raise MissingDependencyError(f"preset {preset}: {error}") from None


def _pieces(group: Group) -> list[Piece]:
    each = tuple(dict.fromkeys(group.batches))
    if group.kernels:
        return [
            Piece(kind="kernels", precision=precision, batches=(batch,), tokens=group.kernels)
            for precision in group.precisions
            for batch in each
        ]
    return [
        Piece(
            model=model,
            image_size=size,
            precision=precision,
            backend=backend,
            batches=batches,
            competitors=group.competitors,
        )
        for size in group.sizes
        for model in group.models
        for precision in group.precisions
        for backend in group.backends
        for batches in ([(one,) for one in each] if backend in SPLIT_BY_BATCH else [each])
    ]


def _setting(piece: Piece) -> tuple[str, ...]:
    return piece.kind, piece.model, str(piece.image_size), piece.backend, piece.precision


def _united(first: Piece, second: Piece) -> Piece:
    return first.model_copy(
        update={
            "competitors": tuple(dict.fromkeys((*first.competitors, *second.competitors))),
            "tokens": tuple(sorted({*first.tokens, *second.tokens})),
        }
    )


def _measures(piece: Piece, aim: Aim) -> bool:
    if aim.kernel:
        timed = (piece.kind, piece.precision) == ("kernels", aim.precision)
        return timed and aim.tokens in piece.tokens and aim.batch in piece.batches
    settings = [(piece.model, piece.image_size, piece.backend, piece.precision, batch) for batch in piece.batches]
    return aim.setting in settings and bool({*aim.competitors} & {*piece.competitors})
