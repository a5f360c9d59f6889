"""What can be said of a recipe before anything is written, fetched or trained."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from vitslim import checkpoint
from vitslim.data import warn_of_shared_images
from vitslim.errors import ConfigError
from vitslim.methods import convert
from vitslim.pipeline.opening import open_images, open_source
from vitslim.pipeline.verbs import device_named, open_any
from vitslim.recipe import Recipe
from vitslim.train.early_tokens import faults_of_early_tokens
from vitslim.trunk import is_converted, plan_summary, trunk_of


def check(recipe: Recipe) -> list[dict[str, Any]]:
    """Do everything that a run checks before it writes, without fetching weights; gives back the plan that it makes.

    Raises:
        ConfigError: a fault in the recipe.
        UnsupportedModelError: no adapter knows the model, or a method refuses it.
        DataError: images that are missing or do not fit the model.
        MissingDependencyError: the device is absent.
    """
    device_named(recipe.device)
    source = open_source(recipe, shape_only=True)
    converted = _try_conversion(recipe, source)
    _check_teacher(recipe, source)
    if recipe.data is not None:
        _check_outputs(recipe, source)
        held_out = open_images(recipe, recipe.data, source, "val")
        if _trains(recipe):
            train = open_images(recipe, recipe.data, source, "train")
            if recipe.evaluate and (recipe.warm_start is not None or recipe.distill is not None):
                warn_of_shared_images(train, held_out)
    return plan_summary(converted) if is_converted(converted) else []


def _try_conversion(recipe: Recipe, source: nn.Module) -> nn.Module:
    """The model as the recipe converts it, without weights."""
    model = copy.deepcopy(source).to("meta")
    for entry in recipe.convert:
        options = {name: value for name, value in entry.items() if name != "method"}
        for name in [name for name, value in options.items() if value == "auto"]:
            if recipe.analyze is None:
                raise ConfigError(f"{name}: auto needs the analysis of the same recipe; add an analyze section")
            options[name] = None
        model = convert(model, entry["method"], **options)
    if recipe.distill is not None and (faults := faults_of_early_tokens(model, recipe.distill.early_tokens)):
        raise ConfigError(f"distill.{faults[0]}")
    return model


def _check_teacher(recipe: Recipe, source: nn.Module) -> None:
    needing = [name for name in ("analyze", "warm_start") if getattr(recipe, name) is not None]
    teacher = source
    if recipe.teacher is not None:
        # Only a saved model can be converted already; others are not opened before the run.
        teacher = open_any(recipe.teacher) if checkpoint.is_saved_model(recipe.teacher) else None
    if teacher is not None and is_converted(teacher) and needing:
        done = ", ".join(entry.method for entry in trunk_of(teacher).history)
        raise ConfigError(
            f"{recipe.teacher or recipe.model.name} is already converted ({done}), but {' and '.join(needing)} read a "
            "dense model; name the one to learn from (--teacher NAME, teacher: NAME), or leave these stages out "
            f"({' '.join(f'--set {name}=null' for name in needing)})"
        )


def _check_outputs(recipe: Recipe, source: nn.Module) -> None:
    section = recipe.distill
    if source.num_classes == 0 and section is not None and (section.soft or section.hard):
        raise ConfigError(
            f"{recipe.model.name} has no classifier, so there are no class scores to learn from; train to its features "
            "(--set distill.soft=0 --set distill.hard=0 --set distill.tokens=1), or give it one with num_classes"
        )


def _trains(recipe: Recipe) -> bool:
    return any(section is not None for section in (recipe.analyze, recipe.warm_start, recipe.distill))
