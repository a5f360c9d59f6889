"""Images as a model wants them: those that it is given, those of its task, those that ship with vitslim."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import InstanceOf
from torch import Tensor, nn

from vitslim.data import DataConfig, Loader, open_data, open_rendered
from vitslim.data.spec import DRAWN, parse_fractals
from vitslim.errors import DataError, VitslimError, VitslimWarning
from vitslim.models import preprocessing, set_preprocessing_
from vitslim.models.image_input import describe_assumed
from vitslim.opening import ModelLike
from vitslim.pipeline.folder import RECIPE_FILE
from vitslim.recipe import DataSection, load_recipe, with_overrides
from vitslim.shapes import AnyPath, Config
from vitslim.trunk import is_converted, trunk_of
from vitslim.validation import validated

DataLike = AnyPath | InstanceOf[DataConfig] | InstanceOf[Loader]


def labels_for(model: nn.Module) -> dict[str, Any]:
    """Which labels a model can be measured with, as ``open_loader`` takes them: its own classes, or none."""
    classes = int(getattr(model, "num_classes", 0))
    return {"num_classes": classes} if classes else {"labels": "ignore"}


def open_loader(
    data: DataLike,
    model: nn.Module,
    *,
    teacher: nn.Module | None = None,
    split: str = "val",
    training: bool = False,
    batch_size: int = 64,
    limit: int | None = None,
    seed: int = 0,
    **options: Any,
) -> Loader:
    """Images prepared as the model wants them, from a path, a data set's name, or a loader that is one already.

    What a ``DataConfig`` states of their preparation is put on the model, and so saved and exported with it.

    Args:
        teacher: sees them too. A student of another image size then gets them at that of its dense model, see
            ``at_plan_size``.
    """
    if isinstance(data, Loader):
        return data
    if isinstance(data, DataConfig):
        set_preprocessing_(model, **data.stated)
    source, known = data.source if isinstance(data, DataConfig) else str(data), preprocessing(model)
    if teacher is not None and is_converted(model):
        plan = trunk_of(model).model_plan
        if plan.image_size != plan.model.image_size:
            known = known.model_copy(update={"image_size": plan.model.image_size})
    # The built-in images are nobody's task.
    if known.assumed and not source.removeprefix(DRAWN).startswith("fractals"):
        warnings.warn(describe_assumed(known), VitslimWarning, stacklevel=2)
    if source.startswith(DRAWN):
        device = next(model.parameters()).device
        return open_rendered(
            parse_fractals(source.removeprefix(DRAWN)),
            split=split,  # pyright: ignore[reportArgumentType]
            preprocessing=known,
            batch_size=batch_size,
            device="cpu" if device.type == "meta" else device,
            training=training,
            limit=limit,
            reserved=int(options.get("reserved", 0)),
            seed=seed,
        )
    return open_data(
        data,
        split=split,  # pyright: ignore[reportArgumentType]
        preprocessing=known,
        batch_size=batch_size,
        training=training,
        limit=limit,
        seed=seed,
        **options,
    )


class _DataSettings(Config):
    """What ``--set`` takes where nothing but images can be set."""

    data: DataConfig = DataConfig()


def read_data_settings(source: str, settings: Iterable[str], *, batch_size: int) -> DataConfig:
    """Images from their name and ``key=value`` assignments, as ``data.mean=0.5``.

    Raises:
        ConfigError: unknown keys or values out of range.
    """
    document = with_overrides({"data": {"source": source, "batch_size": batch_size}}, settings)
    return validated(_DataSettings, document, "--set: ").data


def data_config(data: DataSection) -> DataConfig:
    """The part of the section that says where the images come from."""
    return DataConfig(**data.model_dump(include=set(DataConfig.model_fields)))


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
