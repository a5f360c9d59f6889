"""What a model can be exported to: the protocol of a target, and the registry of all targets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from vitslim.arguments import checked
from vitslim.errors import CheckpointError, ConfigError, MissingDependencyError, UnsupportedModelError
from vitslim.files import require_writable
from vitslim.models import preprocessing
from vitslim.names import did_you_mean
from vitslim.registry import Registry
from vitslim.runtime import Precision, Runner
from vitslim.shapes import Result
from vitslim.targets.parity.bisect import Opened, first_departure
from vitslim.targets.parity.comparing import AS_WRITTEN, Form, compare
from vitslim.targets.parity.guarantee import Guarantee
from vitslim.targets.parity.result import Departure, ParityReport
from vitslim.targets.parity.tolerances import Tolerance

ALL_PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Backend:
    """One way to run what a target wrote.

    Args:
        name: as ``--backend`` takes it.
        preference: of all that could run a saved folder the highest runs it; ``None``: only where it is asked for.
        needs_gpu: whether it runs on a GPU only.
        on_stream: its work goes on torch's current stream, so that CUDA events time it.
        in_torch: torch runs the model itself: no file, and memory of torch's allocator.
        per_batch: what is timed is built anew for every batch size.
        recorded: it is timed as a CUDA graph, which starts in one call what it would start in hundreds.
        needs: modules without which it does not run, beyond those of its target.
    """

    name: str
    preference: int | None = None
    needs_gpu: bool = False
    on_stream: bool = False
    in_torch: bool = False
    per_batch: bool = False
    recorded: bool = False
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Judge:
    """What a file in INT8 may lose against its model.

    Args:
        loss: points of accuracy that a runner loses on held-out images; without labels those on which it disagrees.
        most: that it may lose.
    """

    loss: Callable[[Runner], float]
    most: float


@dataclass(frozen=True)
class ExportRequest:
    """What is to be written where.

    Args:
        path: of the file or folder to write; what holds it may have to be made.
        precision: of weights and arithmetic.
        model: gives the model, opened at the first call; eval mode is the target's to set, on a copy.
        source: the saved folder or exported file that the model comes from, where it comes from one.
        metadata: what the folder knows beyond the model: labels, metrics.
        images: gives so many images of the model's task, normalised, for a check before anything is written.
        overwrite: what lies at ``path`` may be replaced; for single files the caller has asked already.
        calibration: gives so many images of the training set, normalised, from which INT8 takes its ranges.
        judge: of INT8; without one nothing is left in float to lose less.
    """

    path: Path
    precision: Precision
    model: Callable[[], nn.Module]
    source: Path | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])
    images: Callable[[int], Tensor] | None = None
    overwrite: bool = False
    calibration: Callable[[int], Tensor] | None = None
    judge: Judge | None = None

    def sample(self, model: nn.Module, count: int = 8) -> Tensor:
        """Images to compare a written file with its model on; noise where nobody gave any."""
        if self.images is not None:
            return self.images(count)
        image = preprocessing(model)
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, image.channels, *image.image_size, generator=generator)


@dataclass(frozen=True)
class Opening:
    """How something that was written is opened.

    Args:
        backend: one of the target's; ``None`` for its first.
        device: ``cpu`` or ``cuda``; ``None`` for the backend's own.
        threads: of the CPU; ``None`` for as many as the backend likes.
        name: how reports call it; the file's stem by default.
        keeps_compiled: what the backend compiles may be kept in vitslim's cache for the next start.
    """

    backend: str | None = None
    device: str | None = None
    threads: int | None = None
    name: str | None = None
    keeps_compiled: bool = False


@dataclass(frozen=True)
class Timing:
    """What is written to be timed, and opened how; ``batches`` are the images per call that are going to be run."""

    precision: Precision
    batches: Sequence[int]
    device: str
    opening: Opening


class Written(Result):
    """What is known of something that was written; targets may return more."""

    file: str
    precision: Precision
    notes: list[str] = Field(default_factory=list[str])


class Target:
    """Something that models are exported to. A subclass, registered by a name, has to say how to ``write``.

    Args:
        name: as ``--to`` takes it; ``register_target`` sets it.
        title: what it is, in some words.
        suffix: of the file, ``.onnx``; ``None`` for a folder.
        marker: a file by which such a folder is recognised.
        needs: modules without which nothing works; ``extra`` of pip brings them.
        precisions: that it can be written in, the default first.
        int8_needs: modules that int8 needs too.
        serves: targets whose files it serves, each in the precision that it was exported in; ``precisions`` then says
            nothing.
        is_code: opening a file runs code out of it, which therefore happens only where somebody names the file.
        backends: what runs it, the default first; one of its own name where it can ``load`` and nothing is said.
        leaves_sizes_free: files tell by a free height and width that they take images of other sizes too.
    """

    name: str = ""
    title: str = ""
    suffix: str | None = None
    marker: str | None = None
    needs: tuple[str, ...] = ()
    int8_needs: tuple[str, ...] = ()
    extra: str | None = None
    precisions: tuple[Precision, ...] = ("fp32",)
    serves: tuple[str, ...] = ()
    is_code: bool = False
    leaves_sizes_free: bool = False
    backends: tuple[Backend, ...] = ()

    def require(self, precision: Precision | None = None) -> None:
        """Refuse work for which a library is absent.

        Args:
            precision: in which something is going to be written.

        Raises:
            MissingDependencyError: with the pip extra that brings it.
        """
        missing = _absent((*self.needs, *(self.int8_needs if precision == "int8" else ())))
        if missing:
            how = f": pip install 'vitslim[{self.extra}]'" if self.extra else ""
            raise MissingDependencyError(f"target {self.name!r} needs {', '.join(missing)}{how}")

    def reads(self, path: Path) -> bool:
        """Whether a file or folder is one of this target, by its suffix or marker."""
        return path.suffix == self.suffix if self.marker is None else (path / self.marker).is_file()

    def option_names(self) -> list[str]:
        """What ``write`` takes beyond the request."""
        parameters = inspect.signature(self.write).parameters.values()
        return [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]

    def default_precision(self, source: Path | None) -> Precision:
        """The precision where none is asked for."""
        return self.precisions[0]

    def default_path(self, source: Path, precision: str, options: Mapping[str, Any]) -> Path:
        """Where the file of a saved folder lies: ``export/model-inlined-fp16.onnx``, less what is usual.

        Raises:
            ConfigError: there is no such place.
        """
        if self.suffix is None or not source.is_dir():
            raise ConfigError(f"export to {self.name} needs a path (--out) for {source}")
        parts = ["model", *self.name_parts(options), *([precision] if precision != "fp32" else [])]
        return source / "export" / f"{'-'.join(parts)}{self.suffix}"

    def name_parts(self, options: Mapping[str, Any]) -> list[str]:
        """What of the options stands in a file's name."""
        return []

    def check_path(self, path: Path, *, overwrite: bool) -> None:
        """Refuse a path before a model is opened for nothing.

        Raises:
            ConfigError: it ends otherwise, or something lies there.
            CheckpointError: nothing can be written there.
        """
        if self.suffix is not None and path.suffix != self.suffix:
            raise ConfigError(f"{path}: {self.title or self.name} ends in {self.suffix}; wanted such a path")
        if path.is_dir() and self.suffix is not None:
            raise ConfigError(f"{path} is a folder; wanted the path of a file")
        if path.exists() and not overwrite:
            raise ConfigError(f"{path} exists; pass --overwrite or another --out (in Python overwrite=True)")
        require_writable(path)

    def write(self, request: ExportRequest) -> BaseModel:
        """Write the model, or nothing; keyword-only arguments of an override are the target's options."""
        raise UnsupportedModelError(f"{self.name} is no target to export to")

    def load(self, path: Path, how: Opening) -> Runner:
        """What was written, ready to run."""
        raise ConfigError(f"what {self.name} wrote is not run by vitslim")

    def forms(self, path: Path, backend: str | None) -> Iterator[Form]:
        """Every form of a file to be compared with its model; see ``Form``."""
        yield AS_WRITTEN, self.load(path, Opening(backend)), None

    def inside(self, path: Path) -> Opened:
        """What was written, so that it tells what its layers give; for ``bisect``.

        Raises:
            UnsupportedModelError: such files do not show it.
        """
        raise UnsupportedModelError(
            f"what {self.name} wrote does not show its inside; bisect the ONNX file of the model"
        )

    def guarantee(self, path: Path, asked: Precision | None, model: nn.Module) -> Guarantee:
        """What a file is compared with; here the precision that is asked for, or that the runner has."""
        return Guarantee(asked)

    def verify(
        self,
        model: nn.Module,
        path: str | Path,
        images: Tensor,
        *,
        batches: Sequence[int] = (1, 3),
        precision: Precision | None = None,
        tolerance: Tolerance | None = None,
        backend: str | None = None,
    ) -> ParityReport:
        """Run ``images`` through the model in float32 torch and through the file, at several batch sizes.

        Args:
            model: the one that the file was made from; stays as it is.
            path: of the file.
            images: normalised as the model expects; real ones say more than noise. Few are repeated to fill a batch.
            batches: images per call; a file with a fixed batch is checked at that one.
            precision: of a file that nothing else vouches for; ``None`` for fp32.
            tolerance: ``None`` for that of the precision.
            backend: one of ``backends``.

        Raises:
            ConfigError: no image was given, or another precision than the file's record has.
            CheckpointError: the file is missing or cannot be run.
        """
        path = Path(path)
        if not path.exists():
            raise CheckpointError(f"{path} does not exist; export the model first")
        guarantee = self.guarantee(path, precision, model)
        sized = self.leaves_sizes_free
        return compare(model, path.name, self.forms(path, backend), guarantee, images, batches, tolerance, sized)

    def bisect(
        self, model: nn.Module, path: str | Path, images: Tensor, *, precision: Precision | None = None
    ) -> Departure:
        """Where a file first departs from its model; see ``first_departure``.

        Raises:
            CheckpointError: the file is missing or cannot be run.
            UnsupportedModelError: such files do not show their inside.
        """
        path = Path(path)
        if not path.exists():
            raise CheckpointError(f"{path} does not exist; export the model first")
        kept = self.guarantee(path, precision, model).precision or "fp32"
        return first_departure(model, path.name, self.inside(path), images, kept)

    def open_to_time(self, model: nn.Module, folder: Path, how: Timing) -> tuple[Runner, Path | None]:
        """A runner of ``model`` for a benchmark, and the file it runs, which lies in ``folder``."""
        path = folder / f"model{self.suffix or ''}"
        self.write(ExportRequest(path, how.precision, lambda: model), **self.timing_options(how))
        return self.load(path, how.opening), path

    def timing_options(self, how: Timing) -> dict[str, Any]:
        """Options of ``write`` for what is going to be timed."""
        return {}

    def describe(self, written: Any, request: ExportRequest) -> list[str]:
        """What is reported of something that was just written, a line each."""
        return [f"wrote {request.path} ({_bytes(request.path) / 2**20:.1f} MiB)", *getattr(written, "notes", [])]


TARGETS: Registry[Target] = Registry("target", "vitslim.targets", aliases={"tensorrt-rtx": "rtx"})


@checked
def register_target(name: str) -> Callable[[type[Target]], type[Target]]:
    """Make a subclass of ``Target`` known under a name: ``@register_target("mine")``.

    Raises:
        ConfigError: something else has this name.
    """

    def register(kind: type[Target]) -> type[Target]:
        kind.name = name
        if kind.load is not Target.load:
            kind.backends = kind.backends or (Backend(name),)
        TARGETS.register(name, kind())
        return kind

    return register


def backend_names() -> list[str]:
    """Everything that ``find_backend`` knows."""
    return list(dict.fromkeys([one.name for _, target in TARGETS.items() for one in target.backends]))


def find_backend(name: str) -> tuple[Target, Backend]:
    """A backend by its name, with its target; a target's name stands for its first backend.

    Raises:
        ConfigError: nothing has this name.
    """
    entries = TARGETS.items()
    known = {of: (target, target.backends[0]) for of, target in entries if target.backends}
    known |= {one.name: (target, one) for _, target in entries for one in target.backends}
    if name not in known:
        hint = did_you_mean(name, known) or f"; known: {', '.join(backend_names())}"
        raise ConfigError(f"unknown backend {name!r}{hint}")
    return known[name]


def target_of(path: str | Path, backend: str | None = None) -> Target:
    """The target that a file or folder is of.

    Raises:
        ConfigError: no target writes such files, or the backend does not read them.
    """
    path = Path(path)
    reading = [target for _, target in TARGETS.items() if target.reads(path)]
    if not reading:
        known = ", ".join(dict.fromkeys(one.suffix for _, one in TARGETS.items() if one.suffix))
        raise ConfigError(f"{path.name}: no target writes such files; wanted one that ends in {known}")
    if backend is None:
        return reading[0]
    wanted = find_backend(backend)[0]
    if wanted not in reading:
        takers = [one.name for target in reading for one in target.backends]
        raise ConfigError(f"backend {backend!r} does not read {path.name}; wanted one of {', '.join(takers)}")
    return wanted


def verify(
    model: nn.Module, path: str | Path, images: Tensor, *, backend: str | None = None, **options: Any
) -> ParityReport:
    """``Target.verify`` of the target that a file is of."""
    named = None if backend is None else find_backend(backend)[1].name
    return target_of(path, backend).verify(model, path, images, backend=named, **options)


class TargetInfo(Result):
    """One target, as ``vitslim list targets`` shows it.

    Attributes:
        precisions: none where what is served has that of its file.
        missing: modules that are not installed; ``int8_missing`` those that only int8 needs.
    """

    name: str
    title: str
    suffix: str | None
    precisions: list[Precision]
    backends: list[str]
    extra: str | None
    missing: list[str]
    int8_missing: list[str]


@checked
def list_targets() -> list[TargetInfo]:
    """All targets that models can be exported to, those of other packages last."""
    return [
        TargetInfo(
            name=name,
            title=target.title,
            suffix=target.suffix,
            precisions=[] if target.serves else list(target.precisions),
            backends=[one.name for one in target.backends],
            extra=target.extra,
            missing=_absent(target.needs),
            int8_missing=_absent(target.int8_needs),
        )
        for name, target in TARGETS.items()
        if type(target).write is not Target.write
    ]


def _absent(modules: Iterable[str]) -> list[str]:
    return [name for name in modules if find_spec(name) is None]


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
