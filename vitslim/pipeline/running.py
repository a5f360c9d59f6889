"""The run of a recipe: open, plan, analyze, convert, warm start, distill, evaluate, export, verify, bench, report."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vitslim import checkpoint
from vitslim.errors import CheckFailedError, ConfigError
from vitslim.files import read_json, write_json
from vitslim.opening import dense_baseline
from vitslim.pipeline.checks import can_warm_start, check
from vitslim.pipeline.choices import CHOICES_FILE, Choice, advise, convert_all, first_plan
from vitslim.pipeline.cost import write_cost
from vitslim.pipeline.devices import on_device
from vitslim.pipeline.exporting import compare
from vitslim.pipeline.folder import RunFolder
from vitslim.pipeline.images import data_config, default_data, sample_images
from vitslim.pipeline.inputs import (
    analysis_images,
    data_inputs,
    file_state,
    image_input,
    open_images,
    open_source,
    open_teacher,
)
from vitslim.pipeline.outline import Announce, keep_quiet
from vitslim.pipeline.teacher_check import warn_of_poor_teacher
from vitslim.plans import plan_json
from vitslim.progress import Progress, ProgressCallback, silent
from vitslim.recipe import Recipe, write_yaml
from vitslim.train.processes import refuse_several_processes
from vitslim.trunk import is_converted, plan_of

if TYPE_CHECKING:
    from vitslim.analysis import AnalysisReport

PLAN_FILE = "plan.json"
ANALYSIS_FILE = "analysis.json"
METRICS_FILE = "metrics.json"
PARITY_FILE = "export/parity.json"
BENCH_FILE = "bench.json"
WARM_START_FOLDER = "train/warm_start"
DENSE_FOLDER = "train/dense"
PLANNER_FOLDER = "planner"
PLANNER_FILE = "planner.json"
AFTER_TRAINING = ("finetune_dense", "export", "bench", "report")
"""Sections of a recipe on which no plan depends."""

# What was measured on, or made from, a student; it says nothing of the next one.
EVIDENCE = (METRICS_FILE, "export", BENCH_FILE, "report.html")

FindPlan = Callable[[Recipe, Path, ProgressCallback], object]
"""Leaves plan.json and planner.json in a folder, for a recipe with a ``planner``."""


@dataclass(frozen=True)
class RunResult:
    """What a run left behind: its folder, the student, and whether every guarantee that it checked was kept.

    ``choices`` are the blocks that the methods changed, as choices.json has them.
    """

    folder: Path
    student: nn.Module
    teacher: nn.Module
    metrics: Mapping[str, Any]
    passed: bool
    choices: Sequence[Choice] = ()


@dataclass
class _Run:
    recipe: Recipe
    folder: RunFolder
    progress: ProgressCallback
    source: nn.Module  # what is converted
    teacher: nn.Module  # what the student learns from and is compared with
    announce: Announce
    is_teacher_checked: bool = field(default=False, init=False)

    def enter(self, stage: str, inputs: Any, *outputs: str) -> bool:
        """Whether a stage must run; either way it is reported."""
        must_run = self.folder.enter(stage, inputs, *outputs)
        self.progress(Progress(stage, 0, 1, "begun") if must_run else Progress(stage, 1, 1, "done before"))
        return must_run

    def finish(self, stage: str) -> None:
        """Note that the stage last entered is done, and tell it."""
        self.folder.finish(stage)
        self.progress(Progress(stage, 1, 1, "done"))

    def reported_as(self, stage: str) -> ProgressCallback:
        """The progress of a part under a name that tells it from its siblings."""
        return lambda one: self.progress(replace(one, stage=stage))

    def check_teacher(self) -> None:
        """Say it, once, where the teacher is poor; one that was asked for untrained is known to be."""
        data, model = self.recipe.data, self.recipe.model
        is_untrained = self.recipe.teacher is None and not model.pretrained and model.weights is None
        if data is not None and not is_untrained and not self.is_teacher_checked:
            self.is_teacher_checked = True
            # Labels that nothing needs may be of other classes.
            labels = data.labels if self.recipe.evaluate else "ignore"
            given = {"labels": labels, "batch_size": data.batch_size, "progress": self.progress}
            warn_of_poor_teacher(self.teacher, self.source, data_config(data), **given)

    @cached_property
    def class_names(self) -> list[str] | None:
        """The data's names of the student's outputs, where it has one for each."""
        data = self.recipe.data
        names = None if data is None else open_images(self.recipe, data, self.source, "val").class_names
        return None if names is None or len(names) != self.source.num_classes else list(names)


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    overwrite: bool = False,
    progress: ProgressCallback = silent,
    announce: Announce = keep_quiet,
    find_plan: FindPlan | None = None,
) -> RunResult:
    """Run a recipe over an output folder; finished stages whose inputs have not changed are skipped.

    Args:
        announce: called with an ``Outline`` before the first stage, and with the ``Choice`` of every method that has
            one before anything is trained.
        find_plan: the first stage of a recipe with a ``planner``; ``vitslim.pipeline.run`` brings it.

    Raises:
        ConfigError: an error in the recipe, or several processes, said before anything is written.
        DataError: images that are missing or do not fit the model.
        CheckFailedError: a loss that was not finite.
    """
    refuse_several_processes("the run of a recipe")
    if recipe.planner is not None and find_plan is None:
        raise ConfigError("this recipe has its plan found first; run it with vitslim.pipeline.run or `vitslim run`")
    folder = RunFolder(out)
    folder.check(write_yaml(recipe), overwrite=overwrite)
    forecast = check(recipe)
    source = on_device(open_source(recipe, opened=forecast.source), recipe.device)
    teacher = on_device(open_teacher(recipe, source, opened=forecast.teacher), recipe.device)
    folder.begin(write_yaml(recipe), overwrite=overwrite)
    announce(forecast.outline)
    with folder:
        running = _Run(recipe, folder, progress, source, teacher, announce)
        if find_plan is not None:
            running.recipe = _with_plan(running, find_plan)
        student, choices = _make_student(running)
        metrics = _evaluate(running, student)
        passed = _deploy(running, student)
        _write_environment(folder.path)
        if recipe.report:
            from vitslim.report import write_report

            write_report(folder.path)
    return RunResult(folder.path, student, teacher, metrics, passed, choices)


def _with_plan(running: _Run, find_plan: FindPlan) -> Recipe:
    """The recipe with the plan that its planner finds, in a folder within that of the run."""
    recipe, place = running.recipe, running.folder.path / PLANNER_FOLDER
    settings = recipe.model_dump(exclude={"data", *AFTER_TRAINING})
    inputs = [settings, file_state(recipe.model), data_inputs(recipe), image_input(running.source)]
    if running.enter("plan", inputs, *(f"{PLANNER_FOLDER}/{name}" for name in (PLANNER_FILE, PLAN_FILE))):
        find_plan(recipe, place, running.progress)
        running.finish("plan")
    return recipe.model_copy(update={"plan": str(place / PLAN_FILE)})


def _make_student(running: _Run) -> tuple[nn.Module, list[Choice]]:
    recipe, folder = running.recipe, running.folder
    student, choices = _convert(recipe, running.source, _analyze(running))
    if choices:
        running.announce(choices)
    inputs = [
        recipe.model.model_dump(),
        file_state(recipe.model),
        recipe.convert,
        None if recipe.plan is None else read_json(recipe.plan),
        recipe.seed,
        image_input(running.source),
    ]
    # What another version of the code chose is another student, though the recipe and the analysis are the same.
    decided = [choice.used for choice in choices] if recipe.analyze else []
    outputs = (PLAN_FILE, checkpoint.WEIGHTS_FILE, *([CHOICES_FILE] if choices else []))
    if running.enter("convert", [*inputs, *decided], *outputs):
        folder.discard(*EVIDENCE, CHOICES_FILE, *([] if recipe.analyze else [ANALYSIS_FILE, "plots"]))
        folder.discard(*([] if recipe.planner else [PLANNER_FOLDER]))
        write_json(folder.path / PLAN_FILE, plan_json(plan_of(student)) if is_converted(student) else {})
        write_cost(folder.path, student)
        if choices:
            write_json(folder.path / CHOICES_FILE, [choice.model_dump(mode="json") for choice in choices])
        _save(running, student, folder.path)
        running.finish("convert")
    student = _warm_start(running, student)
    return _distill(running, student), choices


def _convert(recipe: Recipe, source: nn.Module, analysis: AnalysisReport | None) -> tuple[nn.Module, list[Choice]]:
    torch.manual_seed(recipe.seed)
    advice = None if analysis is None else advise(recipe.convert, first_plan(recipe, source)[0], analysis)
    return convert_all(recipe, source, advice)


def _analyze(running: _Run) -> AnalysisReport | None:
    recipe, folder = running.recipe, running.folder
    if recipe.analyze is None or recipe.data is None:
        return None
    from vitslim.analysis import AnalysisReport, analyze, analyze_once
    from vitslim.report import write_plots

    section = recipe.analyze
    inputs = [recipe.model.model_dump(), file_state(recipe.model), recipe.teacher, data_inputs(recipe)]
    if running.enter("analyze", [*inputs, section.model_dump(exclude={"cache"})], ANALYSIS_FILE):
        measure = analyze_once if section.cache else analyze
        report = measure(
            running.teacher,
            analysis_images(recipe, recipe.data, section, running.teacher),
            images=section.images,
            replacement_images=section.replacement_images,
            progress=running.progress,
        )
        write_json(folder.path / ANALYSIS_FILE, report.model_dump(mode="json"))
        write_plots(report, folder.path / "plots")
        running.finish("analyze")
    return AnalysisReport(**folder.read(ANALYSIS_FILE))


def _warm_start(running: _Run, student: nn.Module) -> nn.Module:
    recipe, folder = running.recipe, running.folder
    if recipe.warm_start is None or recipe.data is None or not can_warm_start(student):
        return student
    from vitslim.train import warm_start

    place = folder.path / WARM_START_FOLDER
    inputs = [recipe.teacher, data_inputs(recipe), recipe.warm_start.model_dump()]
    if not running.enter("warm_start", inputs, f"{WARM_START_FOLDER}/{checkpoint.WEIGHTS_FILE}"):
        return on_device(checkpoint.load(place), recipe.device)
    running.check_teacher()
    folder.discard(*EVIDENCE, *([] if folder.is_continued else [WARM_START_FOLDER]))
    loader = open_images(recipe, recipe.data, running.source, "train", training=True)
    result = warm_start(
        student, running.teacher, loader, recipe.warm_start, out_dir=place, resume=True, progress=running.progress
    )
    write_json(place / "result.json", result.model_dump(mode="json"))
    _save(running, student, place)
    _save(running, student, folder.path)
    running.finish("warm_start")
    return student


def _distill(running: _Run, student: nn.Module) -> nn.Module:
    recipe, folder = running.recipe, running.folder
    if recipe.distill is None or recipe.data is None:
        return student
    inputs = [recipe.teacher, data_inputs(recipe), recipe.distill.model_dump()]
    if running.enter("distill", inputs, "train/result.json", checkpoint.WEIGHTS_FILE):
        if recipe.distill.imitates:
            running.check_teacher()
        folder.discard(*EVIDENCE, *([] if folder.is_continued else ["train/state.safetensors"]))
        _train(running, student, folder.path / "train", "distill")
        _save(running, student, folder.path)
        running.finish("distill")
    else:
        student = on_device(checkpoint.load(folder.path), recipe.device)
    if recipe.finetune_dense and running.enter("finetune_dense", None, f"{DENSE_FOLDER}/{checkpoint.WEIGHTS_FILE}"):
        folder.discard(*EVIDENCE, *([] if folder.is_continued else [DENSE_FOLDER]))
        dense = copy.deepcopy(running.teacher)
        _train(running, dense, folder.path / DENSE_FOLDER, "distill (dense)")
        _save(running, dense, folder.path / DENSE_FOLDER)
        running.finish("finetune_dense")
    return student


def _train(running: _Run, model: nn.Module, place: Path, name: str) -> None:
    from vitslim.train import distill

    recipe = running.recipe
    assert recipe.distill is not None
    assert recipe.data is not None
    loader = open_images(recipe, recipe.data, running.source, "train", training=True)
    # A dense model has no tokens to choose.
    settings = recipe.distill if is_converted(model) else recipe.distill.model_copy(update={"early_tokens": 0.0})
    result = distill(
        model, running.teacher, loader, settings, out_dir=place, resume=True, progress=running.reported_as(name)
    )
    write_json(place / "result.json", result.model_dump(mode="json"))


def _evaluate(running: _Run, student: nn.Module) -> Mapping[str, Any]:
    recipe, folder = running.recipe, running.folder
    if not recipe.evaluate or recipe.data is None:
        return {}
    from vitslim.train import evaluate_all

    inputs = [recipe.teacher, data_inputs(recipe), recipe.finetune_dense]
    if running.enter("evaluate", inputs, METRICS_FILE):
        loader = open_images(recipe, recipe.data, running.source, "val")
        competitors: dict[str, nn.Module] = {"student": student}
        if recipe.finetune_dense:
            dense = checkpoint.load(folder.path / DENSE_FOLDER)
            competitors["dense_finetuned"] = on_device(dense, recipe.device)
        found = evaluate_all(competitors, loader, teacher=running.teacher, progress=running.progress)
        order = [name for name in ("teacher", "student", "dense_finetuned") if name in found]
        metrics = {name: found[name].model_dump(mode="json") for name in order}
        write_json(folder.path / METRICS_FILE, metrics)
        _save(running, student, folder.path, metrics)
        running.finish("evaluate")
    return folder.read(METRICS_FILE)


def _deploy(running: _Run, student: nn.Module) -> bool:
    passed = _export(running, student)
    _bench(running, student)
    return passed


def _export(running: _Run, student: nn.Module) -> bool:
    recipe, folder = running.recipe, running.folder
    section = recipe.export
    if section is None:
        return True
    from vitslim.targets import TARGETS
    from vitslim.targets.onnx.export import export_onnx

    forms: dict[str, Any] = {
        "input_format": section.input_format,
        "inline": section.inline,
        "dynamic_image_size": section.dynamic_image_size,
    }
    names = [TARGETS.get("onnx").default_path(folder.path, precision, forms).name for precision in section.precisions]
    inputs = [data_inputs(recipe), section.model_dump()]
    if running.enter("export", inputs, PARITY_FILE, *(f"export/{name}" for name in names)):
        images = sample_images(student, _parity_data(recipe, student), max(section.images, *section.batches))
        paths: list[Path] = []
        for precision in section.precisions:
            paths.append(TARGETS.get("onnx").default_path(folder.path, precision, forms))
            export_onnx(
                student,
                paths[-1],
                precision=precision,
                opset=section.opset,
                optimize=section.optimize,
                inline=section.inline,
                dynamic_image_size=section.dynamic_image_size,
                input_format=section.input_format,
                metadata={} if running.class_names is None else {"labels": running.class_names},
            )
        found = compare(student, paths, images, section.batches)
        write_json(folder.path / PARITY_FILE, found.model_dump(mode="json"))
        running.finish("export")
    return bool(folder.read(PARITY_FILE)["passed"])


def _bench(running: _Run, student: nn.Module) -> None:
    recipe, folder = running.recipe, running.folder
    if recipe.bench is None:
        return
    from vitslim.bench import benchmark

    if running.enter("bench", recipe.bench.model_dump(), BENCH_FILE):
        dense = dense_baseline(student)
        options = recipe.bench.model_dump()
        models = {"dense": dense, "student": student.cpu()}
        report = benchmark(models, baseline="dense", progress=running.progress, **options)
        write_json(folder.path / BENCH_FILE, report.model_dump(mode="json"))
        running.finish("bench")


def _write_environment(folder: Path) -> None:
    from vitslim.bench import environment

    write_json(folder / "env.json", environment())


def _parity_data(recipe: Recipe, student: nn.Module) -> Any:
    return default_data(student) if recipe.data is None else data_config(recipe.data)


def _save(running: _Run, model: nn.Module, place: Path, metrics: Mapping[str, Any] | None = None) -> None:
    checkpoint.save(model, place, overwrite=True, class_names=running.class_names, metrics=metrics)


def require_passed(result: RunResult) -> None:
    """Turn a broken guarantee into an error.

    Raises:
        CheckFailedError: an exported artefact is out of tolerance.
    """
    if not result.passed:
        raise CheckFailedError(f"an exported artefact is out of tolerance; see {result.folder / PARITY_FILE}")
