"""The images that an artefact is compared on: those of the model's own task where they are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vitslim.errors import DataError, VitslimError
from vitslim.models import preprocessing
from vitslim.pipeline.folder import RECIPE_FILE
from vitslim.pipeline.opening import data_config
from vitslim.pipeline.verbs import DataLike, ModelLike, open_loader
from vitslim.recipe import load_recipe


@dataclass(frozen=True)
class TaskImages:
    """Held-out images as the model wants them, (n, c, h, w), and in words where they come from."""

    images: Tensor
    origin: str


def task_images(model: ModelLike, live: nn.Module, data: DataLike | None, count: int) -> TaskImages:
    """``count`` held-out images of ``data``, else of the recipe in the model's folder, else built-in ones.

    Args:
        model: as the user named it; a folder may hold the recipe that made it.
        live: the same model, opened.

    Raises:
        DataError: the images that were asked for cannot be read.
    """
    if data is not None:
        return TaskImages(sample_images(live, data, count), "the images given as data")
    built_in = "built-in images (fractals); --data names images of the task"
    recipe_file = None if isinstance(model, nn.Module) else Path(model) / RECIPE_FILE
    if recipe_file is not None and recipe_file.is_file():
        try:
            section = load_recipe(recipe_file).data
            if section is not None:
                return TaskImages(
                    sample_images(live, data_config(section), count), f"images of the task ({section.source})"
                )
        except VitslimError as error:
            # Moved or offline, as on a machine that only deploys.
            built_in += f"; those of {RECIPE_FILE} could not be read: {error}"
    return TaskImages(sample_images(live, default_data(live), count), built_in)


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
