"""What a recipe reads: its models, its images."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from vitslim import checkpoint
from vitslim.data import Loader
from vitslim.models import preprocessing
from vitslim.opening import open_model, open_shape
from vitslim.pipeline.images import data_config, labels_for, open_loader
from vitslim.recipe import AnalyzeSection, DataSection, ModelSection, Recipe


def open_source(recipe: Recipe, *, shape_only: bool = False, opened: nn.Module | None = None) -> nn.Module:
    """The model that a recipe converts.

    Args:
        shape_only: fetch no weights, and allocate none where they are not here; see ``vitslim.opening.open_shape``.
        opened: what ``shape_only`` gave; it comes back where it has its weights, so that nothing is opened twice.
    """
    if opened is not None and _has_weights(opened):
        return opened
    section = recipe.model
    torch.manual_seed(recipe.seed)
    return (open_shape if shape_only else open_model)(
        section.name,
        pretrained=section.pretrained,
        weights=section.weights,
        img_size=section.img_size,
        num_classes=section.num_classes,
        # Before anything is made of it: what is stated of the images is saved with the student too.
        stated=None if recipe.data is None else recipe.data.stated,
        **section.options,
    )


def open_teacher(
    recipe: Recipe, source: nn.Module, *, shape_only: bool = False, opened: nn.Module | None = None
) -> nn.Module:
    """The model that a recipe learns from, ``source`` itself where it names none; arguments as ``open_source``'s."""
    if recipe.teacher is None:
        return source
    if opened is not None and _has_weights(opened):
        return opened
    return (open_shape if shape_only else open_model)(recipe.teacher)


def open_images(
    recipe: Recipe,
    data: DataSection,
    model: nn.Module,
    split: Literal["train", "val"],
    *,
    training: bool = False,
) -> Loader:
    """One split of a recipe's images, prepared for a model, with labels only where something needs them."""
    is_trained = split == "train" and recipe.distill is not None and recipe.distill.ce_weight > 0
    return open_loader(
        data_config(data),
        model,
        split=split,
        training=training,
        batch_size=data.batch_size,
        limit=data.train_limit if split == "train" else data.val_limit,
        seed=recipe.seed,
        augment=data.augment if training else None,
        reserved=data.reserved if training else 0,
        **_labels(data, model, is_measured=recipe.evaluate and split == "val", is_trained=is_trained),
    )


def analysis_images(recipe: Recipe, data: DataSection, section: AnalyzeSection, model: nn.Module) -> Loader:
    """The images of an analysis: the same ones for all recipes of a model, with labels or without."""
    limit = min(section.images, data.train_limit or section.images)
    return open_loader(
        data_config(data),
        model,
        split="train",
        batch_size=data.batch_size,
        limit=limit,
        seed=recipe.seed,
        labels="ignore",
    )


def _labels(data: DataSection, model: nn.Module, *, is_measured: bool, is_trained: bool) -> dict[str, Any]:
    if data.labels == "ignore" or not (is_measured or is_trained):
        return {"labels": "ignore"}
    return {**labels_for(model), "labels": "require"} if is_trained else labels_for(model)


def labels_of(data: DataSection, model: nn.Module) -> dict[str, Any]:
    """Which labels training images are opened with that only measure: those that there are, or none."""
    return {"labels": "ignore"} if data.labels == "ignore" else labels_for(model)


def data_inputs(recipe: Recipe) -> Any:
    """What of the images a stage depends on."""
    # The number of processes that decode images changes none of them.
    return None if recipe.data is None else recipe.data.model_dump(exclude={"workers"})


def image_input(model: nn.Module) -> Any:
    """What of the model's own preparation of images is saved with it."""
    return preprocessing(model).model_dump()


def file_state(section: ModelSection) -> list[int]:
    """Size and time of the file that the model is read from: another file under the same name is another input."""
    named = Path(section.weights or section.name)
    path = named / checkpoint.WEIGHTS_FILE if named.is_dir() else named
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []


def _has_weights(model: nn.Module) -> bool:
    return not any(parameter.is_meta for parameter in model.parameters())
