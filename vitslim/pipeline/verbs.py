"""The single verbs, as Python users call them: models by name or object, data by path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, overload

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from vitslim import checkpoint
from vitslim.data import DataConfig, Loader, open_data
from vitslim.errors import ConfigError, DataError, MissingDependencyError
from vitslim.export import ParityCheck
from vitslim.export import verify as verify_artifact
from vitslim.files import read_json
from vitslim.models import open_model, preprocessing
from vitslim.progress import ProgressCallback, silent
from vitslim.recipe import describe_faults
from vitslim.shapes import Config, Result

if TYPE_CHECKING:
    from vitslim.analysis import AnalysisReport
    from vitslim.bench import BenchReport
    from vitslim.export import OnnxExport
    from vitslim.runtime import EngineRecord
    from vitslim.train import EvalResult, TrainResult

ModelLike = nn.Module | str | Path
ConfigType = TypeVar("ConfigType", bound=Config)
DataLike = str | Path | DataConfig | Loader


def open_any(model: ModelLike, **options: Any) -> nn.Module:
    """A module as it is; a folder or file of ours loaded; anything else opened as a dense model by name.

    Raises:
        ConfigError: unknown name, or options for something that was saved.
    """
    if isinstance(model, nn.Module):
        return model
    if checkpoint.is_saved_model(model):
        given = [name for name, value in options.items() if value not in (None, True)]
        if given:
            raise ConfigError(f"{model} is a saved model, which knows its own {', '.join(given)}; leave them out")
        return checkpoint.load(model)
    if isinstance(model, Path) or ("/" in model and ":" not in model) or Path(model).is_dir():
        raise ConfigError(f"{model} is neither a folder nor a file that vitslim wrote; wanted one, or a timm name")
    return open_model(model, **options)


def on_device(model: nn.Module, device: str) -> nn.Module:
    """The model moved to a device that is really there; see ``device_named``."""
    return model.to(device_named(device))


def device_named(device: str) -> torch.device:
    """A device that is really there.

    Raises:
        ConfigError: the device's name is not one.
        MissingDependencyError: the device is absent.
    """
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device {device!r} is not one; wanted cpu, cuda or cuda:N") from None
    if wanted.type not in ("cpu", "cuda"):
        raise ConfigError(f"device {device!r} is not one that vitslim runs on; wanted cpu, cuda or cuda:N")
    if wanted.type == "cuda":
        if not torch.cuda.is_available():
            raise MissingDependencyError(f"device {device!r} was asked for, but no usable GPU is there; use cpu")
        if (wanted.index or 0) >= torch.cuda.device_count():
            raise MissingDependencyError(f"device {device!r} was asked for; there are {torch.cuda.device_count()} GPUs")
    return wanted


def labels_for(model: nn.Module) -> dict[str, Any]:
    """How ``open_loader`` is told which labels a model can be measured with: its own classes, or none at all."""
    classes = int(getattr(model, "num_classes", 0))
    return {"num_classes": classes} if classes else {"labels": "ignore"}


def open_loader(
    data: DataLike,
    model: nn.Module,
    *,
    split: str = "val",
    training: bool = False,
    batch_size: int = 64,
    limit: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Loader:
    """Images prepared as the model wants them, from a path, a data set's name, or a loader that is one already."""
    if isinstance(data, Loader):
        return data
    return open_data(
        data,
        split=split,  # pyright: ignore[reportArgumentType]
        preprocessing=preprocessing(model),
        batch_size=batch_size,
        training=training,
        limit=limit,
        seed=seed,
        **options,
    )


def analyze(
    model: ModelLike,
    data: DataLike,
    *,
    images: int | None = 1024,
    replacement_images: int = 256,
    batch_size: int = 64,
    split: str = "train",
    device: str = "cpu",
    progress: ProgressCallback = silent,
) -> AnalysisReport:
    """What is redundant in a dense model; labels are not needed. See ``vitslim.analysis.analyze``."""
    from vitslim.analysis import analyze as analyze_layers

    dense = on_device(open_any(model), device)
    loader = open_loader(data, dense, split=split, batch_size=batch_size, limit=images, labels="ignore")
    return analyze_layers(dense, loader, images=images, replacement_images=replacement_images, progress=progress)


def warm_start(
    student: nn.Module,
    teacher: ModelLike,
    data: DataLike,
    *,
    batch_size: int = 64,
    progress: ProgressCallback = silent,
    **options: Any,
) -> TrainResult:
    """Fit all new modules of a converted model to the dense one, layer by layer at once; labels are not needed."""
    from vitslim.train import WarmStartConfig
    from vitslim.train import warm_start as fit

    dense = open_any(teacher).to(next(student.parameters()).device)
    loader = open_loader(data, student, split="train", training=True, batch_size=batch_size, labels="ignore")
    return fit(student, dense, loader, _configured(WarmStartConfig, options), progress=progress)


def distill(
    student: nn.Module,
    teacher: ModelLike | None,
    data: DataLike,
    *,
    batch_size: int = 64,
    out_dir: str | Path | None = None,
    resume: bool = False,
    validate: bool = True,
    progress: ProgressCallback = silent,
    **options: Any,
) -> nn.Module:
    """Train a student in place, to a teacher or to labels, and give it back; options are ``DistillConfig``'s."""
    from vitslim.train import DistillConfig
    from vitslim.train import distill as train

    dense = None if teacher is None else open_any(teacher).to(next(student.parameters()).device)
    config = _configured(DistillConfig, options)
    labels = labels_for(student)
    loader = open_loader(data, student, split="train", training=True, batch_size=batch_size, **labels)
    held_out = open_loader(data, student, split="val", batch_size=batch_size, **labels) if validate else None
    train(student, dense, loader, config, val_loader=held_out, out_dir=out_dir, resume=resume, progress=progress)
    return student


def evaluate(
    model: ModelLike,
    data: DataLike,
    *,
    teacher: ModelLike | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    device: str = "cpu",
    backend: str = "torch",
    progress: ProgressCallback = silent,
) -> EvalResult:
    """Top-1, top-5 and agreement with a teacher on the held-out split.

    Args:
        backend: what runs the model: ``torch`` on ``device``, or its exported file in one of
            ``vitslim.runtime.BACKENDS``, or ``auto`` for the best of them.
    """
    from vitslim.train import evaluate as measure

    if backend != "torch":
        return _evaluate_exported(model, data, backend, teacher, batch_size, limit, progress)
    student = on_device(open_any(model), device)
    dense = None if teacher is None else on_device(open_any(teacher), device)
    loader = open_loader(data, student, split="val", batch_size=batch_size, limit=limit, **labels_for(student))
    return measure(student, loader, teacher=dense, progress=progress)


def _evaluate_exported(
    model: ModelLike,
    data: DataLike,
    backend: str,
    teacher: ModelLike | None,
    batch_size: int,
    limit: int | None,
    progress: ProgressCallback,
) -> EvalResult:
    from vitslim.pipeline.engines import RunnerModule, open_backend
    from vitslim.train import evaluate as measure

    live = open_any(model)
    with open_backend(model, backend) as runner:
        loader = open_loader(data, live, split="val", batch_size=batch_size, limit=limit, **labels_for(live))
        dense = None if teacher is None else open_any(teacher).to(runner.device)
        return measure(RunnerModule(runner, live), loader, teacher=dense, progress=progress)


def _configured(kind: type[ConfigType], options: Mapping[str, Any]) -> ConfigType:
    try:
        return kind(**options)
    except ValidationError as error:
        raise ConfigError("; ".join(describe_faults(error, kind))) from None


@overload
def export(
    model: ModelLike,
    path: str | Path | None = None,
    *,
    to: Literal["onnx"] = ...,
    precision: str | None = ...,
    **options: Any,
) -> OnnxExport: ...


@overload
def export(
    model: ModelLike, path: str | Path | None = None, *, to: str, precision: str | None = ..., **options: Any
) -> OnnxExport | EngineRecord: ...


def export(
    model: ModelLike, path: str | Path | None = None, *, to: str = "onnx", precision: str | None = None, **options: Any
) -> OnnxExport | EngineRecord:
    """Write an artefact; for a saved folder it lies in ``export/`` beside the model.

    Args:
        model: a folder that was saved, a module, or a dense model's name.
        path: of the file.
        to: ``onnx`` or ``tensorrt``.
        precision: of weights and arithmetic; ``None`` for fp32 in ONNX files, fp16 in engines, since TensorRT fuses
            attention in fp16 and bf16 only.
        options: of ``vitslim.export.export_onnx``, or fields of ``vitslim.export.tensorrt.EngineOptions``.

    Raises:
        ConfigError: an unknown target, or no path for a model that is not a folder.
    """
    from vitslim.export import export_onnx
    from vitslim.pipeline.engines import export_engine

    if to == "tensorrt":
        return export_engine(model, path, **({} if precision is None else {"precision": precision}), **options)
    if to != "onnx":
        raise ConfigError(f"export to {to!r} is not known; wanted 'onnx' or 'tensorrt'")
    precision = precision or "fp32"
    if path is None:
        if isinstance(model, nn.Module) or not Path(model).is_dir():
            raise ConfigError("export needs a path, except for a folder that vitslim.save wrote")
        forms = {name: options[name] for name in ("images", "inline", "dynamic_image_size") if name in options}
        path = default_artifact(model, precision, **forms)
    options["metadata"] = {**known_of(model), **(options.get("metadata") or {})}
    return export_onnx(open_any(model), Path(path), precision=precision, **options)  # pyright: ignore[reportArgumentType]


def known_of(model: ModelLike) -> dict[str, Any]:
    """What a saved folder knows of its model beyond the model itself, for the metadata of a file."""
    if isinstance(model, nn.Module) or not checkpoint.is_saved_model(model):
        return {}
    names = checkpoint.load_config(model).class_names
    known: dict[str, Any] = {} if names is None else {"labels": names}
    metrics = Path(model) / "metrics.json"
    if metrics.is_file():
        student = read_json(metrics).get("student") or {}
        known["metrics"] = {name: student[name] for name in ("top1", "top5", "agreement", "images") if name in student}
    return known


def default_artifact(
    folder: str | Path,
    precision: str,
    *,
    images: str = "normalized",
    inline: bool = False,
    dynamic_image_size: bool = False,
) -> Path:
    """Where the ONNX file of a saved folder lies: ``export/model-inlined-uint8-nhwc-fp16.onnx``, less what is usual."""
    parts = {
        "inlined": inline,
        "any-size": dynamic_image_size,
        images: images != "normalized",
        precision: precision != "fp32",
    }
    return Path(folder) / "export" / f"{'-'.join(['model', *(part for part, told in parts.items() if told)])}.onnx"


class Verification(Result):
    """What ``verify`` found for all artefacts together, as it stands in parity.json."""

    passed: bool
    checks: list[ParityCheck]
    notes: list[str]

    def failures(self) -> list[str]:
        """One sentence per broken promise."""
        return [f"{check.artifact}, batch {check.batch}: {one}" for check in self.checks for one in check.failures]


def verify(
    model: ModelLike,
    artifacts: str | Path | Sequence[str | Path] | None = None,
    *,
    data: DataLike | None = None,
    images: int = 32,
    batches: tuple[int, ...] = (1, 3),
    backend: str | None = None,
) -> Verification:
    """Compare exported artefacts with the model on images of its task, at several batch sizes.

    The images are those of ``data``; else of the recipe that the model's folder was made by; else built-in ones. A note
    says which.

    Where no artefacts are named these are all in ``export/`` that the backend reads; engines among them only where
    there is a GPU, which a note says.

    Raises:
        ConfigError: nothing was exported yet.
    """
    from vitslim.pipeline.task_images import task_images

    live = open_any(model)
    paths = _artifacts(model, artifacts, backend)
    sample = task_images(model, live, data, max(images, *batches))
    found = compare(live, paths, sample.images, batches, backend)
    skipped = [] if artifacts is not None else _skipped_engines(model, backend)
    compared = f"compared on {len(sample.images)} {sample.origin}"
    return found.model_copy(update={"notes": [compared, *found.notes, *skipped]})


def compare(
    live: nn.Module, paths: Iterable[Path], images: Tensor, batches: Sequence[int], backend: str | None = None
) -> Verification:
    """``verify`` for a model and images that are at hand."""
    reports = [verify_artifact(live, path, images, batches=batches, backend=backend) for path in paths]
    return Verification(
        passed=all(report.passed for report in reports),
        checks=[check for report in reports for check in report.checks],
        notes=[note for report in reports for note in report.notes],
    )


def sample_images(model: nn.Module, data: DataLike, count: int) -> Tensor:
    """``count`` held-out images as the model wants them, or all where there are fewer.

    Raises:
        DataError: none could be read.
    """
    loader = open_loader(data, model, split="val", batch_size=min(count, 64), limit=count, labels="ignore")
    found: list[Tensor] = []
    for batch in loader:
        found.append(batch.images)
        if sum(len(part) for part in found) >= count:
            break
    if not found:
        raise DataError(f"{loader.origin}: no image could be read")
    return torch.cat(found)[:count]


def default_data(model: nn.Module) -> DataLike:
    """The built-in images at the model's size, for checks that need images and not their labels."""
    size = max(preprocessing(model).image_size)
    return f"fractals:classes=4,train_per_class=1,val_per_class=16,image_size={size}"


def benchmark(
    models: Mapping[str, ModelLike] | Iterable[ModelLike],
    *,
    against: ModelLike | None = None,
    progress: ProgressCallback = silent,
    **options: Any,
) -> BenchReport:
    """Latency, throughput and cost, every model beside the dense one with fused attention in the same run.

    Args:
        models: names or folders, or a mapping of row names to models.
        against: the dense baseline; without it the base of the first converted model, or the first dense one.
        options: fields of ``BenchConfig``.
    """
    from vitslim.bench import benchmark as measure
    from vitslim.export import export_onnx
    from vitslim.pipeline.engines import export_engine

    device_named(str(options.get("device", "cpu")))
    opened = {name: _open_unweighted(model) for name, model in _by_row_name(models)}
    if not opened:
        raise ConfigError("bench was given no model")
    baseline = _baseline(opened, against)
    others = {name: model for name, model in opened.items() if model is not baseline}
    if "dense" in others:
        raise ConfigError("the row 'dense' is the baseline's; give that model as against (--against), or rename it")
    return measure(
        {"dense": baseline, **others},
        baseline="dense",
        exporter=export_onnx,
        engine_exporter=export_engine,
        progress=progress,
        **options,
    )


def dense_twin(model: nn.Module) -> nn.Module:
    """The dense model that a converted one came from, at the same size; weights are random.

    Raises:
        ConfigError: the model does not know its base.
    """
    described = checkpoint.describe_saved(model)
    return checkpoint.build(described.model_copy(update={"conversions": []})).eval()


def _baseline(opened: Mapping[str, nn.Module], against: ModelLike | None) -> nn.Module:
    from vitslim.trunk import is_converted

    if against is not None and against != "dense":
        return _open_unweighted(against)
    for model in opened.values():
        if not is_converted(model):
            return model
    return dense_twin(next(iter(opened.values())))


def _open_unweighted(model: ModelLike) -> nn.Module:
    """``open_any`` without fetching weights, on which speed does not depend."""
    is_named = isinstance(model, str) and not checkpoint.is_saved_model(model)
    return open_any(model, pretrained=False) if is_named else open_any(model)


def _by_row_name(models: Mapping[str, ModelLike] | Iterable[ModelLike]) -> Iterable[tuple[str, ModelLike]]:
    if isinstance(models, Mapping):
        return cast("Mapping[str, ModelLike]", models).items()
    given = list(models)
    if any(isinstance(model, nn.Module) for model in given):
        raise ConfigError("models given as objects need names: pass a mapping of names to models")
    paths = list(dict.fromkeys(str(model) for model in given))
    names = [Path(path).name or path for path in paths]
    return [(name if names.count(name) == 1 else path, path) for name, path in zip(names, paths, strict=True)]


def _skipped_engines(model: ModelLike, backend: str | None) -> list[str]:
    if isinstance(model, nn.Module) or backend is not None or torch.cuda.is_available():
        return []
    engines = sorted((Path(model) / "export").glob("*.engine"))
    return [f"{engine.name} was not compared: an engine runs on a GPU, none is here" for engine in engines]


def _artifacts(
    model: ModelLike, artifacts: str | Path | Sequence[str | Path] | None, backend: str | None
) -> list[Path]:
    if artifacts is not None:
        return [Path(artifacts)] if isinstance(artifacts, str | Path) else [Path(path) for path in artifacts]
    if isinstance(model, nn.Module):
        raise ConfigError("verify needs the artefacts to compare, or a folder that holds them")
    suffixes = [".engine"] if backend in ("tensorrt", "rtx") else [".onnx"]
    if backend is None and torch.cuda.is_available():
        suffixes.append(".engine")
    found = sorted(path for path in (Path(model) / "export").glob("*") if path.suffix in suffixes)
    if not found:
        target = "tensorrt" if suffixes == [".engine"] else "onnx"
        raise ConfigError(f"{model} holds no exported artefact; run `vitslim export {model} --to {target}` first")
    return found
