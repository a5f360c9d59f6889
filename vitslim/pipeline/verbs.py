"""The single verbs, as Python users call them: models by name or object, data by path."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from pydantic import InstanceOf, ValidationError
from torch import nn

from vitslim import checkpoint
from vitslim.arguments import checked
from vitslim.data import DataConfig, Loader, open_data
from vitslim.errors import ConfigError, MissingDependencyError, VitslimWarning
from vitslim.models import open_model, preprocessing, set_preprocessing_
from vitslim.models.image_input import describe_assumed
from vitslim.names import check_device
from vitslim.progress import ProgressCallback, silent
from vitslim.shapes import AnyPath, AtLeastOne, Config
from vitslim.validation import describe_faults

if TYPE_CHECKING:
    from vitslim.analysis import AnalysisReport
    from vitslim.bench import BenchReport
    from vitslim.train import EvalResult, TrainResult

ModelLike = nn.Module | AnyPath
ConfigType = TypeVar("ConfigType", bound=Config)
DataLike = AnyPath | InstanceOf[DataConfig] | InstanceOf[Loader]


def open_any(model: ModelLike, /, **options: Any) -> nn.Module:
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
    wanted = torch.device(check_device(device))
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
    """Images prepared as the model wants them, from a path, a data set's name, or a loader that is one already.

    What a ``DataConfig`` states of their preparation is put on the model, and so saved and exported with it.
    """
    if isinstance(data, Loader):
        return data
    if isinstance(data, DataConfig):
        set_preprocessing_(model, **data.stated)
    _tell_what_is_assumed(data, model)
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


def _tell_what_is_assumed(data: str | Path | DataConfig, model: nn.Module) -> None:
    source = data.source if isinstance(data, DataConfig) else str(data)
    known = preprocessing(model)
    # The built-in images are nobody's task.
    if known.assumed and not source.startswith("fractals"):
        warnings.warn(describe_assumed(known), VitslimWarning, stacklevel=2)


@checked
def analyze(
    model: ModelLike,
    data: DataLike,
    *,
    images: AtLeastOne | None = 1024,
    replacement_images: AtLeastOne = 256,
    batch_size: AtLeastOne = 64,
    split: Literal["train", "val"] = "train",
    device: str = "cpu",
    cache: bool = True,
    progress: ProgressCallback = silent,
) -> AnalysisReport:
    """What is redundant in a dense model; labels are not needed. See ``vitslim.analysis.analyze``.

    Args:
        cache: take over what was found before in this model on these images, see ``vitslim.analysis.analyze_once``.
    """
    from vitslim.analysis import analyze as analyze_layers
    from vitslim.analysis import analyze_once

    dense = on_device(open_any(model), device)
    loader = open_loader(data, dense, split=split, batch_size=batch_size, limit=images, labels="ignore")
    measure = analyze_once if cache else analyze_layers
    return measure(dense, loader, images=images, replacement_images=replacement_images, progress=progress)


@checked
def warm_start(
    student: nn.Module,
    teacher: ModelLike,
    data: DataLike,
    *,
    batch_size: AtLeastOne = 64,
    progress: ProgressCallback = silent,
    **options: Any,
) -> TrainResult:
    """Fit all new modules of a converted model to the dense one, layer by layer at once; labels are not needed."""
    from vitslim.train import WarmStartConfig
    from vitslim.train import warm_start as fit

    dense = open_any(teacher).to(next(student.parameters()).device)
    loader = open_loader(data, student, split="train", training=True, batch_size=batch_size, labels="ignore")
    return fit(student, dense, loader, _configured(WarmStartConfig, options), progress=progress)


@checked
def distill(
    student: nn.Module,
    teacher: ModelLike | None,
    data: DataLike,
    *,
    batch_size: AtLeastOne = 64,
    out_dir: AnyPath | None = None,
    resume: bool = False,
    validate: bool = True,
    progress: ProgressCallback = silent,
    **options: Any,
) -> TrainResult:
    """Train a student in place, to a teacher or to labels, and tell how it went; options are ``DistillConfig``'s."""
    from vitslim.train import DistillConfig
    from vitslim.train import distill as train

    dense = None if teacher is None else open_any(teacher).to(next(student.parameters()).device)
    config = _configured(DistillConfig, options)
    labels = labels_for(student)
    loader = open_loader(data, student, split="train", training=True, batch_size=batch_size, **labels)
    held_out = open_loader(data, student, split="val", batch_size=batch_size, **labels) if validate else None
    return train(student, dense, loader, config, val_loader=held_out, out_dir=out_dir, resume=resume, progress=progress)


@checked
def evaluate(
    model: ModelLike,
    data: DataLike,
    *,
    teacher: ModelLike | None = None,
    batch_size: AtLeastOne = 64,
    limit: AtLeastOne | None = None,
    device: str = "cpu",
    backend: str = "torch",
    progress: ProgressCallback = silent,
) -> EvalResult:
    """Top-1, top-5 and agreement with a teacher on the held-out split.

    Args:
        backend: what runs the model: ``torch`` on ``device``, or its exported file in a backend of
            ``vitslim list targets``, or ``auto`` for the best of them.
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
    from vitslim.pipeline.runners import RunnerModule, open_runner
    from vitslim.train import evaluate as measure

    if isinstance(model, nn.Module):
        raise ConfigError(f"backend {backend!r} opens saved folders and files; save the model and export it first")
    live = open_any(model)
    with open_runner(model, backend=None if backend == "auto" else backend) as runner:
        loader = open_loader(data, live, split="val", batch_size=batch_size, limit=limit, **labels_for(live))
        dense = None if teacher is None else open_any(teacher).to(runner.device)
        return measure(RunnerModule(runner, live), loader, teacher=dense, progress=progress)


def _configured(kind: type[ConfigType], options: Mapping[str, Any]) -> ConfigType:
    try:
        return kind(**options)
    except ValidationError as error:
        raise ConfigError("; ".join(describe_faults(error, kind))) from None


@checked
def benchmark(
    models: Mapping[str, ModelLike] | Sequence[ModelLike],
    *,
    against: ModelLike | None = None,
    model_options: Mapping[str, Any] | None = None,
    progress: ProgressCallback = silent,
    **options: Any,
) -> BenchReport:
    """Latency, throughput and cost, every model beside the dense one with fused attention in the same run.

    Args:
        models: names or folders, or a mapping of row names to models.
        against: the dense baseline; without it the base of the first converted model, or the first dense one.
        model_options: arguments of ``open_model`` for all models that are given by timm name.
        options: fields of ``BenchConfig``.
    """
    from vitslim.bench import benchmark as measure

    device_named(str(options.get("device", "cpu")))
    given = {name: value for name, value in (model_options or {}).items() if value is not None}
    rows = list(_by_row_name(models))
    if given and not any(_is_named(model) for _, model in rows):
        raise ConfigError(f"{', '.join(given)} shape a model that is given by its timm name; none of these is")
    opened = {name: _open_unweighted(model, given) for name, model in rows}
    if not opened:
        raise ConfigError("bench was given no model")
    baseline = _baseline(opened, against, given)
    others = {name: model for name, model in opened.items() if model is not baseline}
    if "dense" in others:
        raise ConfigError("the row 'dense' is the baseline's; give that model as against (--against), or rename it")
    return measure(
        {"dense": baseline, **others},
        baseline="dense",
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


def _baseline(
    opened: Mapping[str, nn.Module], against: ModelLike | None, model_options: Mapping[str, Any]
) -> nn.Module:
    from vitslim.trunk import is_converted

    if against is not None and against != "dense":
        return _open_unweighted(against, model_options)
    for model in opened.values():
        if not is_converted(model):
            return model
    return dense_twin(next(iter(opened.values())))


def _open_unweighted(model: ModelLike, model_options: Mapping[str, Any]) -> nn.Module:
    """``open_any`` without fetching weights, on which speed does not depend."""
    return open_any(model, pretrained=False, **model_options) if _is_named(model) else open_any(model)


def _is_named(model: ModelLike) -> bool:
    return isinstance(model, str) and not checkpoint.is_saved_model(model)


def _by_row_name(models: Mapping[str, ModelLike] | Iterable[ModelLike]) -> Iterable[tuple[str, ModelLike]]:
    if isinstance(models, Mapping):
        return cast("Mapping[str, ModelLike]", models).items()
    given = list(models)
    if any(isinstance(model, nn.Module) for model in given):
        raise ConfigError("models given as objects need names: pass a mapping of names to models")
    paths = list(dict.fromkeys(str(model) for model in given))
    names = [Path(path).name or path for path in paths]
    return [(name if names.count(name) == 1 else path, path) for name, path in zip(names, paths, strict=True)]
