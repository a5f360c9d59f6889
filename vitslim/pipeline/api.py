"""The public functions, as Python users call them: models by name, path or object, data by path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import InstanceOf
from torch import nn

from vitslim.arguments import checked
from vitslim.errors import ConfigError
from vitslim.methods import Evidence, MethodConfig, read_method
from vitslim.methods import convert as convert_module
from vitslim.opening import ModelLike, dense_baseline, is_named, open_model
from vitslim.pipeline.devices import device_named, on_device
from vitslim.pipeline.images import DataLike, labels_for, open_loader
from vitslim.plans import ModelPlan, read_plan, read_plan_file
from vitslim.progress import ProgressCallback, silent
from vitslim.shapes import AnyPath, AtLeastOne
from vitslim.trunk import is_converted
from vitslim.validation import validated

if TYPE_CHECKING:
    from vitslim.analysis import AnalysisReport
    from vitslim.bench import BenchReport
    from vitslim.train import EvalResult, TrainResult


@checked
def convert(
    model: ModelLike,
    method: str | InstanceOf[MethodConfig] | None = None,
    *,
    plan: InstanceOf[ModelPlan] | Mapping[str, Any] | AnyPath | None = None,
    analysis: Evidence | None = None,
    **options: Any,
) -> nn.Module:
    """Convert a pretrained ViT; a given module stays as it is and shares nothing with the copy that comes back.

    Args:
        model: dense or already converted; whatever ``open_model`` takes.
        method: the method's name with ``options``, or its config.
        plan: what to make of the model, in place of a method: a plan, plain data as ``PlanReport.plan`` has it, or the
            path of a plan.json.
        analysis: decides the options that are left to it (``None``), and is needed by those that say ``"auto"``.
        options: fields of the method's config.

    Returns:
        A model of the same timm class whose ``blocks`` are a ``Trunk``. New parameters are not trained yet.

    Raises:
        ConfigError: unknown method or option, a value out of range, a plan that cannot be built, or a method that was
            applied before.
        UnsupportedModelError: no adapter knows the model.
    """
    if method is not None:  # refused before weights are fetched
        method, options = read_method(method, options)[1], {}
    if isinstance(plan, str | Path):
        plan = read_plan_file(plan)
    elif isinstance(plan, Mapping):
        plan = read_plan(plan)
    return convert_module(open_model(model), method, plan=plan, analysis=analysis, **options)


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

    dense = on_device(open_model(model), device)
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

    config = validated(WarmStartConfig, options)
    dense = open_model(teacher).to(next(student.parameters()).device)
    loader = open_loader(data, student, split="train", training=True, batch_size=batch_size, labels="ignore")
    return fit(student, dense, loader, config, progress=progress)


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
    """Train a student in place, to a teacher or to labels, and report how it went; options are ``DistillConfig``'s."""
    from vitslim.train import DistillConfig
    from vitslim.train import distill as train

    config = validated(DistillConfig, options)
    dense = None if teacher is None else open_model(teacher).to(next(student.parameters()).device)
    labels = labels_for(student)
    shared: dict[str, Any] = {"teacher": dense, "batch_size": batch_size, **labels}
    loader = open_loader(data, student, split="train", training=True, **shared)
    held_out = open_loader(data, student, split="val", **shared) if validate else None
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
    from vitslim.pipeline.runners import RunnerModule, open_runner
    from vitslim.train import evaluate as measure

    if backend != "torch" and isinstance(model, nn.Module):
        raise ConfigError(f"backend {backend!r} opens saved folders and files; save the model and export it first")
    student = on_device(open_model(model), device)
    dense = None if teacher is None else on_device(open_model(teacher), device)
    loader = open_loader(
        data, student, teacher=dense, split="val", batch_size=batch_size, limit=limit, **labels_for(student)
    )
    wanted = None if backend == "auto" else backend
    with (
        nullcontext()
        if isinstance(model, nn.Module) or backend == "torch"
        else open_runner(model, backend=wanted) as runner
    ):
        run = student if runner is None else RunnerModule(runner, student)
        return measure(run, loader, teacher=dense, progress=progress)


@checked
def benchmark(
    models: Mapping[str, ModelLike] | Sequence[ModelLike],
    *,
    baseline: ModelLike | None = None,
    model_options: Mapping[str, Any] | None = None,
    progress: ProgressCallback = silent,
    **options: Any,
) -> BenchReport:
    """Latency, throughput and cost, every model beside the dense one with fused attention in the same run.

    Args:
        models: names or folders, or a mapping of row names to models.
        baseline: the dense one; without it the base of the first converted model, or the first dense one.
        model_options: arguments of ``open_model`` for all models that are given by timm name.
        options: fields of ``BenchConfig``.
    """
    from vitslim.bench import benchmark as measure

    device_named(str(options.get("device", "cpu")))
    given = {name: value for name, value in (model_options or {}).items() if value is not None}
    rows = list(_by_row_name(models))
    if given and not any(is_named(model) for _, model in rows):
        raise ConfigError(f"{', '.join(given)} shape a model that is given by its timm name; none of these is")
    if not rows:
        raise ConfigError("bench was given no model")
    opened = {name: _open_for_speed(model, given) for name, model in rows}
    if baseline is not None and baseline != "dense":
        dense = _open_for_speed(baseline, given)
    else:
        found = next((model for model in opened.values() if not is_converted(model)), None)
        dense = dense_baseline(next(iter(opened.values()))) if found is None else found
    others = {name: model for name, model in opened.items() if model is not dense}
    if "dense" in others:
        raise ConfigError("the row 'dense' is the baseline's; give that model as baseline (--baseline), or rename it")
    return measure(
        {"dense": dense, **others},
        baseline="dense",
        progress=progress,
        **options,
    )


def _open_for_speed(model: ModelLike, model_options: Mapping[str, Any]) -> nn.Module:
    """A model without fetching weights, on which speed does not depend."""
    return open_model(model, pretrained=False, **model_options) if is_named(model) else open_model(model)


def _by_row_name(models: Mapping[str, ModelLike] | Iterable[ModelLike]) -> Iterable[tuple[str, ModelLike]]:
    if isinstance(models, Mapping):
        return cast("Mapping[str, ModelLike]", models).items()
    given = list(models)
    if any(isinstance(model, nn.Module) for model in given):
        raise ConfigError("models given as objects need names: pass a mapping of names to models")
    paths = list(dict.fromkeys(str(model) for model in given))
    names = [Path(path).name or path for path in paths]
    return [(name if names.count(name) == 1 else path, path) for name, path in zip(names, paths, strict=True)]
