"""The road of a recipe: open, analyze, convert, warm start, distill, evaluate, export, verify, bench, report."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vitslim import checkpoint
from vitslim.data import Loader
from vitslim.errors import CheckFailedError, ConfigError
from vitslim.files import write_json
from vitslim.methods import convert, method_named, read_options
from vitslim.pipeline.folder import RunFolder
from vitslim.pipeline.verbs import (
    compare,
    default_artifact,
    default_data,
    dense_twin,
    on_device,
    open_any,
    open_loader,
    sample_images,
)
from vitslim.progress import Progress, ProgressCallback, silent
from vitslim.recipe import DataSection, Recipe, write_yaml
from vitslim.trunk import plan_summary

if TYPE_CHECKING:
    from vitslim.analysis import AnalysisReport

ANALYSIS_FILE = "analysis.json"
METRICS_FILE = "metrics.json"
PARITY_FILE = "export/parity.json"
BENCH_FILE = "bench.json"
WARM_FILE = "train/warm_started"


@dataclass(frozen=True)
class RunResult:
    """What a run left behind: its folder, the student, and whether every promise that it checked was kept."""

    folder: Path
    student: nn.Module
    teacher: nn.Module
    metrics: Mapping[str, Any]
    passed: bool


@dataclass
class _Road:
    recipe: Recipe
    folder: RunFolder
    progress: ProgressCallback
    teacher: nn.Module

    def say(self, stage: str, done: int = 0) -> None:
        self.progress(Progress(stage, done, 1, "stage"))


def check(recipe: Recipe) -> list[dict[str, Any]]:
    """Do everything that a run checks before it writes, and give back the plan that it would make.

    Raises:
        ConfigError: a fault in the recipe.
        DataError: images that are missing or do not fit the model.
    """
    teacher = on_device(_open_teacher(recipe), recipe.device)
    return _check(recipe, teacher)


def _check(recipe: Recipe, teacher: nn.Module) -> list[dict[str, Any]]:
    # A trial conversion and a look at the images find most faults before the folder is touched.
    plan = _try_conversion(recipe, teacher)
    if recipe.data is not None:
        _loader(recipe, recipe.data, teacher, "val")
    return plan


def run(recipe: Recipe, out: str | Path, *, overwrite: bool = False, progress: ProgressCallback = silent) -> RunResult:
    """Walk a recipe's road over an output folder; finished stages whose inputs have not changed are skipped.

    Raises:
        ConfigError: a fault in the recipe, said before anything is written.
        DataError: images that are missing or do not fit the model.
        CheckFailedError: a loss that was not finite.
    """
    teacher = on_device(_open_teacher(recipe), recipe.device)
    _check(recipe, teacher)
    folder = RunFolder(out)
    folder.begin(write_yaml(recipe), overwrite=overwrite)
    road = _Road(recipe, folder, progress, teacher)
    student = _make_student(road)
    metrics = _evaluate(road, student)
    passed = _deploy(road, student)
    _write_environment(folder.path)
    if recipe.report:
        from vitslim.report import write_report

        write_report(folder.path)
    return RunResult(folder.path, student, teacher, metrics, passed)


def _open_teacher(recipe: Recipe) -> nn.Module:
    section = recipe.model
    torch.manual_seed(recipe.seed)
    return open_any(
        section.name,
        pretrained=section.pretrained,
        weights=section.weights,
        img_size=section.img_size,
        num_classes=section.num_classes,
        **section.options,
    )


def _try_conversion(recipe: Recipe, teacher: nn.Module) -> list[dict[str, Any]]:
    model = copy.deepcopy(teacher).to("meta")
    for entry in recipe.convert:
        options = {name: value for name, value in entry.items() if name != "method"}
        if options.get("layers") == "auto":
            if recipe.analyze is None:
                raise ConfigError("layers: auto needs the analysis of the same recipe; add an analyze section")
            options["layers"] = None
        model = convert(model, entry["method"], **options)
    return plan_summary(model) if recipe.convert else []


def _make_student(road: _Road) -> nn.Module:
    recipe, folder = road.recipe, road.folder
    analysis = _analyze(road)
    student = _convert(recipe, road.teacher, analysis)
    inputs = [recipe.model.model_dump(), recipe.convert, recipe.seed]
    if folder.enter("convert", inputs, "plan.json"):
        road.say("convert")
        write_json(folder.path / "plan.json", plan_summary(student) if recipe.convert else [])
        _save(road, student, folder.path)
        folder.finish("convert")
    student = _warm_start(road, student)
    return _distill(road, student)


def _convert(recipe: Recipe, teacher: nn.Module, analysis: AnalysisReport | None) -> nn.Module:
    torch.manual_seed(recipe.seed)
    student = copy.deepcopy(teacher)
    for entry in recipe.convert:
        method = method_named(entry["method"])
        options = read_options(method, {name: value for name, value in entry.items() if name != "method"})
        student = convert(student, options, analysis=_Evidence(analysis) if analysis else None)
    return student


@dataclass(frozen=True)
class _Evidence:
    """The part of an analysis that methods read, as plain data."""

    report: AnalysisReport

    @property
    def recommended(self) -> Mapping[str, Any]:
        return self.report.recommended.model_dump()


def _analyze(road: _Road) -> AnalysisReport | None:
    recipe, folder = road.recipe, road.folder
    if recipe.analyze is None or recipe.data is None:
        return None
    from vitslim.analysis import AnalysisReport, analyze, write_plots

    inputs = [recipe.model.model_dump(), recipe.data.model_dump(), recipe.analyze.model_dump()]
    if folder.enter("analyze", inputs, ANALYSIS_FILE):
        loader = _loader(recipe, recipe.data, road.teacher, "train", limit=recipe.analyze.images)
        section = recipe.analyze
        report = analyze(
            road.teacher,
            loader,
            images=section.images,
            replacement_images=section.replacement_images,
            progress=road.progress,
        )
        write_json(folder.path / ANALYSIS_FILE, report.model_dump(mode="json"))
        write_plots(report, folder.path / "plots")
        folder.finish("analyze")
    return AnalysisReport(**folder.read(ANALYSIS_FILE))


def _warm_start(road: _Road, student: nn.Module) -> nn.Module:
    recipe, folder = road.recipe, road.folder
    if recipe.warm_start is None or recipe.data is None or not _has_new_parameters(student):
        return student
    from vitslim.train import warm_start

    if folder.enter("warm_start", recipe.warm_start.model_dump(), f"{WARM_FILE}/model.safetensors"):
        loader = _loader(recipe, recipe.data, road.teacher, "train", training=True)
        result = warm_start(student, road.teacher, loader, recipe.warm_start, progress=road.progress)
        write_json(folder.path / "train/warm_start.json", result.model_dump(mode="json"))
        _save(road, student, folder.path / WARM_FILE)
        _save(road, student, folder.path)
        folder.finish("warm_start")
        return student
    return on_device(checkpoint.load(folder.path / WARM_FILE), recipe.device)


def _distill(road: _Road, student: nn.Module) -> nn.Module:
    recipe, folder = road.recipe, road.folder
    if recipe.distill is None or recipe.data is None:
        return student
    if folder.enter("distill", recipe.distill.model_dump(), "train/student/model.safetensors"):
        _train(road, student, "student")
        folder.finish("distill")
    student = on_device(checkpoint.load(folder.path / "train/student"), recipe.device)
    if folder.enter("control", recipe.control, *(["train/control/model.safetensors"] if recipe.control else [])):
        if recipe.control:
            _train(road, copy.deepcopy(road.teacher), "control")
        folder.finish("control")
    return student


def _train(road: _Road, model: nn.Module, name: str) -> None:
    from vitslim.train import distill

    recipe, folder = road.recipe, road.folder.path
    assert recipe.distill is not None
    assert recipe.data is not None
    train_loader = _loader(recipe, recipe.data, road.teacher, "train", training=True)
    progress = road.progress

    def report(one: Progress) -> None:
        progress(replace(one, stage=f"{one.stage} ({name})"))

    place = folder / "train" / name
    result = distill(model, road.teacher, train_loader, recipe.distill, out_dir=place, resume=True, progress=report)
    write_json(place / "result.json", result.model_dump(mode="json"))
    _save(road, model, place)
    if name == "student":
        _save(road, model, folder)


def _evaluate(road: _Road, student: nn.Module) -> Mapping[str, Any]:
    recipe, folder = road.recipe, road.folder
    if not recipe.evaluate or recipe.data is None:
        return {}
    from vitslim.train import evaluate

    if folder.enter("evaluate", recipe.data.model_dump(), METRICS_FILE):
        loader = _loader(recipe, recipe.data, road.teacher, "val")
        metrics: dict[str, Any] = {}
        competitors: dict[str, nn.Module] = {"teacher": road.teacher, "student": student}
        if recipe.control:
            control = checkpoint.load(folder.path / "train/control")
            competitors["dense_control"] = on_device(control, recipe.device)
        for name, model in competitors.items():
            against = None if name == "teacher" else road.teacher
            found = evaluate(model, loader, teacher=against, progress=road.progress)
            metrics[name] = found.model_dump(mode="json")
        write_json(folder.path / METRICS_FILE, metrics)
        _save(road, student, folder.path, metrics)
        folder.finish("evaluate")
    return folder.read(METRICS_FILE)


def _deploy(road: _Road, student: nn.Module) -> bool:
    passed = _export(road, student)
    _bench(road, student)
    return passed


def _export(road: _Road, student: nn.Module) -> bool:
    recipe, folder = road.recipe, road.folder
    section = recipe.export
    if section is None:
        return True
    from vitslim.export import export_onnx

    if folder.enter("export", section.model_dump(), PARITY_FILE):
        road.say("export")
        images = sample_images(student, _parity_data(recipe, student), max(section.images, *section.batches))
        paths: list[Path] = []
        for precision in section.precisions:
            paths.append(default_artifact(folder.path, precision))
            export_onnx(student, paths[-1], precision=precision, optimize=section.optimize)
        found = compare(student, paths, images, section.batches)
        write_json(folder.path / PARITY_FILE, found.model_dump(mode="json"))
        folder.finish("export")
    return bool(folder.read(PARITY_FILE)["passed"])


def _bench(road: _Road, student: nn.Module) -> None:
    recipe, folder = road.recipe, road.folder
    if recipe.bench is None:
        return
    from vitslim.bench import benchmark
    from vitslim.export import export_onnx

    if folder.enter("bench", recipe.bench.model_dump(), BENCH_FILE):
        dense = dense_twin(student)
        options = recipe.bench.model_dump()
        models = {"dense": dense, "student": student.cpu()}
        report = benchmark(models, baseline="dense", exporter=export_onnx, progress=road.progress, **options)
        write_json(folder.path / BENCH_FILE, report.model_dump(mode="json"))
        folder.finish("bench")


def _write_environment(folder: Path) -> None:
    from vitslim.bench import environment

    write_json(folder / "env.json", environment())


def _parity_data(recipe: Recipe, student: nn.Module) -> Any:
    return default_data(student) if recipe.data is None else recipe.data


def _loader(recipe: Recipe, data: DataSection, model: nn.Module, split: str, **options: Any) -> Loader:
    training = bool(options.get("training"))
    limit = options.pop("limit", data.train_limit if split == "train" else data.val_limit)
    if training:
        options["augment"] = data.augment
    base = {name: getattr(data, name) for name in type(data).__mro__[1].model_fields}  # pyright: ignore[reportAttributeAccessIssue]
    from vitslim.data import DataConfig

    return open_loader(
        DataConfig(**base), model, split=split, batch_size=data.batch_size, limit=limit, seed=recipe.seed, **options
    )


def _save(road: _Road, model: nn.Module, place: Path, metrics: Mapping[str, Any] | None = None) -> None:
    names: list[str] | None = None
    if road.recipe.data is not None:
        found = _loader(road.recipe, road.recipe.data, road.teacher, "val").class_names
        names = None if found is None else list(found)
    checkpoint.save(model, place, overwrite=True, class_names=names, metrics=metrics)


def _has_new_parameters(student: nn.Module) -> bool:
    from vitslim.trunk import is_converted, trunk_of

    return is_converted(student) and bool(trunk_of(student).new_parameters())


def require_passed(result: RunResult) -> None:
    """Turn a broken promise into an error.

    Raises:
        CheckFailedError: an exported artefact is out of tolerance.
    """
    if not result.passed:
        raise CheckFailedError(f"an exported artefact is out of tolerance; see {result.folder / PARITY_FILE}")
