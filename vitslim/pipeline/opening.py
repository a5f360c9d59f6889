"""What a recipe opens: its model, its images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import nn

from vitslim import checkpoint
from vitslim.data import DataConfig, Loader
from vitslim.errors import ConfigError
from vitslim.models import preprocessing, set_preprocessing_
from vitslim.pipeline.verbs import labels_for, open_any, open_loader
from vitslim.recipe import AnalyzeSection, DataSection, ModelSection, Recipe, with_overrides
from vitslim.shapes import Config
from vitslim.validation import describe_faults


def open_source(recipe: Recipe, *, shape_only: bool = False) -> nn.Module:
    """The model that a recipe converts; ``shape_only`` fetches no weights and allocates none where it can."""
    section = recipe.model
    # A file decides the number of classes, and a saved model all of its shape, so these are opened as they are.
    is_local = section.weights is not None or checkpoint.is_saved_model(section.name)
    pretrained = section.pretrained and (is_local or not shape_only)
    torch.manual_seed(recipe.seed)
    with torch.device("meta" if shape_only and not is_local else "cpu"):
        model = open_any(
            section.name,
            pretrained=pretrained,
            weights=section.weights,
            img_size=section.img_size,
            num_classes=section.num_classes,
            **section.options,
        )
    # Before anything is made of it: what is stated of the images is saved with the student too.
    return set_preprocessing_(model, **({} if recipe.data is None else recipe.data.stated))


def open_images(
    recipe: Recipe,
    data: DataSection,
    model: nn.Module,
    split: Literal["train", "val"],
    *,
    training: bool = False,
) -> Loader:
    """One split of a recipe's images, prepared for a model, with labels only where something needs them."""
    is_trained = split == "train" and recipe.distill is not None and recipe.distill.hard > 0
    return open_loader(
        data_config(data),
        model,
        split=split,
        training=training,
        batch_size=data.batch_size,
        limit=data.train_limit if split == "train" else data.val_limit,
        seed=recipe.seed,
        augment=data.augment if training else None,
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


class _DataSettings(Config):
    """What ``--set`` takes where nothing but images can be set."""

    data: DataConfig = DataConfig()


def read_data_settings(source: str, settings: Iterable[str], *, batch_size: int) -> DataConfig:
    """Images from their name and ``key=value`` assignments, as ``data.mean=0.5``.

    Raises:
        ConfigError: unknown keys or values out of range.
    """
    document = with_overrides({"data": {"source": source, "batch_size": batch_size}}, settings)
    try:
        return _DataSettings.model_validate(document).data
    except ValidationError as error:
        raise ConfigError(f"--set: {'; '.join(describe_faults(error, _DataSettings))}") from None


def data_config(data: DataSection) -> DataConfig:
    """The part of the section that says where the images come from."""
    return DataConfig(**data.model_dump(include=set(DataConfig.model_fields)))


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
