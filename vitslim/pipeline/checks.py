"""What can be said of a recipe before anything is written, fetched or trained."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn

from vitslim.data import Loader, warn_of_shared_images
from vitslim.errors import ConfigError
from vitslim.pipeline.choices import Choice, first_plan, forecast
from vitslim.pipeline.devices import device_named
from vitslim.pipeline.inputs import open_images, open_source, open_teacher
from vitslim.pipeline.outline import Budget, ImageOutline, Outline, budget_of, outline_images
from vitslim.pipeline.runtimes import check_runtime
from vitslim.plans import ModelPlan
from vitslim.recipe import PlannerSection, Recipe
from vitslim.targets.onnx.export import check_export
from vitslim.train import check_distillation, training_errors
from vitslim.train.early_tokens import early_token_errors
from vitslim.trunk import build, is_converted, plan_of, trunk_of


@dataclass(frozen=True)
class Forecast:
    """What is known of a run before it begins.

    Args:
        plan: of the student; ``None`` for a model that no adapter knows.
        choices: the blocks that its methods take; where the analysis decides, their ``reason`` says so.
        source: what is converted, as far as it can be opened without fetching weights.
        teacher: what it learns from, likewise.
    """

    outline: Outline
    plan: ModelPlan | None
    choices: list[Choice]
    source: nn.Module
    teacher: nn.Module


def check(recipe: Recipe) -> Forecast:
    """Do everything that a run checks before it writes, without fetching weights; gives back what it will do.

    Raises:
        ConfigError: an error in the recipe.
        UnsupportedModelError: no adapter knows the model, or a method refuses it.
        DataError: images that are missing or do not fit the model.
        MissingDependencyError: the device, or something that the export needs, is absent.
    """
    device_named(recipe.device)
    if recipe.planner is not None:
        check_runtime(recipe.planner.runtime)
    source = open_source(recipe, shape_only=True)
    student, plan, choices = _forecast_student(recipe, copy.deepcopy(source).to("meta"))
    teacher = open_teacher(recipe, source, shape_only=True)
    _check_teacher(recipe, teacher)
    images, train = _open_images(recipe, source)
    _check_training(recipe, student, teacher, train)
    if recipe.export is not None:
        section = recipe.export
        for precision in section.precisions:
            check_export(
                student,
                precision,
                opset=section.opset,
                optimize=section.optimize,
                dynamic_image_size=section.dynamic_image_size,
            )
    outline = Outline(
        model=recipe.model.name,
        methods=[str(entry["method"]) for entry in recipe.convert],
        teacher=recipe.teacher,
        images=images,
        budget=_budget(recipe, student),
    )
    return Forecast(outline, plan, choices, source, teacher)


def _forecast_student(recipe: Recipe, source: nn.Module) -> tuple[nn.Module, ModelPlan | None, list[Choice]]:
    """The student without weights, its plan, and what its methods choose; the dense model where that is not known."""
    if recipe.planner is not None:
        _check_budgets(recipe.planner, recipe.model.name, source)
    if not recipe.convert and recipe.plan is None:
        return source, plan_of(source) if is_converted(source) else None, []
    plan, choices = forecast(recipe, *first_plan(recipe, source))
    return build(plan, source), plan, choices


def _check_budgets(planner: PlannerSection, name: str, source: nn.Module) -> None:
    if is_converted(source):
        raise ConfigError(f"{name} is converted already; a plan for a budget begins with the dense model")
    for budget in planner.budgets:
        if budget.measure != "time" and budget.max_drop is None:
            budget.limit(plan_of(source), None, planner.runtime.precision)


def can_warm_start(student: nn.Module) -> bool:
    """Whether there is anything for a warm start to fit."""
    return is_converted(student) and trunk_of(student).fits


def _check_teacher(recipe: Recipe, teacher: nn.Module) -> None:
    needing = [name for name in ("analyze", "warm_start") if getattr(recipe, name) is not None]
    if is_converted(teacher) and needing:
        done = ", ".join(entry.method for entry in trunk_of(teacher).history)
        raise ConfigError(
            f"{recipe.teacher or recipe.model.name} is already converted ({done}), but {' and '.join(needing)} read a "
            "dense model; name the one to learn from (--teacher NAME, teacher: NAME), or leave these stages out "
            f"({' '.join(f'--set {name}=null' for name in needing)})"
        )


def _open_images(recipe: Recipe, source: nn.Module) -> tuple[ImageOutline | None, Loader | None]:
    """The images as the run opens them, and those to train on where it does."""
    data = recipe.data
    if data is None:
        return None, None
    _check_outputs(recipe, source)
    held_out = open_images(recipe, data, source, "val")
    trains = recipe.warm_start is not None or recipe.distill is not None
    train = open_images(recipe, data, source, "train") if trains or recipe.analyze is not None else None
    if train is not None and trains and recipe.evaluate:
        warn_of_shared_images(train, held_out)
    augment = data.augment if trains else None
    return outline_images(data.source, source, train if trains else None, held_out, augment), train


def _check_outputs(recipe: Recipe, source: nn.Module) -> None:
    section = recipe.distill
    if source.num_classes == 0 and section is not None and (section.kd_weight or section.ce_weight):
        raise ConfigError(
            f"{recipe.model.name} has no classifier, so there are no class scores to learn from; train to its features "
            "(--set distill.kd_weight=0 --set distill.ce_weight=0 --set distill.token_weight=1), or give it one with "
            "num_classes"
        )


def _check_training(recipe: Recipe, student: nn.Module, teacher: nn.Module, train: Loader | None) -> None:
    if recipe.warm_start is not None:
        errors = training_errors(recipe.warm_start)
        if errors:
            raise ConfigError(f"warm_start: {'; '.join(errors)}")
    section = recipe.distill
    if section is None or train is None:
        return
    if errors := early_token_errors(student, section.early_tokens):
        raise ConfigError(f"distill.{errors[0]}")
    check_distillation(student, copy.deepcopy(teacher).to("meta"), train, section)


def _budget(recipe: Recipe, student: nn.Module) -> list[Budget]:
    if recipe.data is None:
        return []
    warm_start = recipe.warm_start
    if not can_warm_start(student) or not trunk_of(student).fits_by_gradients or (warm_start and warm_start.steps == 0):
        warm_start = None  # what it solves in closed form takes no steps
    stages = [("warm start", warm_start), ("distillation", recipe.distill)]
    if recipe.finetune_dense:
        stages.append(("distillation of the dense model", recipe.distill))
    return [budget_of(name, config, recipe.data.batch_size) for name, config in stages if config is not None]
