"""The images that starts are fitted to and damage is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from vitslim.data import Loader
from vitslim.errors import ConfigError
from vitslim.files import digest_of
from vitslim.pipeline.images import data_config, open_loader
from vitslim.pipeline.inputs import file_state, labels_of
from vitslim.planner import DamageMeter, PlannerConfig
from vitslim.recipe import Recipe

_FEWEST = 32
"""Images to train on."""
_SHARE = 1 / 3
"""Of the training images at most that damage is measured on."""


def count_images(recipe: Recipe, model: nn.Module, config: PlannerConfig) -> int:
    """How many training images planning takes for itself, so that no trial is trained on them.

    Raises:
        ConfigError: there are too few.
    """
    found = _open(recipe, model, labels="ignore")
    if found.num_images < _FEWEST:
        raise ConfigError(f"{found.origin} has {found.num_images} images; planning needs {_FEWEST} at least")
    return min(config.fitted + config.held_out, int(_SHARE * found.num_images))


def open_meter(recipe: Recipe, model: nn.Module, config: PlannerConfig, folder: Path) -> DamageMeter:
    """What measures damage, a part of the images being for the starts; a file in the folder keeps what it finds."""
    data, images = recipe.data, count_images(recipe, model, config)
    assert data is not None
    loader = _open(recipe, model, limit=images, **labels_of(data, model))
    batches = [batch.to(next(model.parameters()).device) for batch in loader]
    cut = round(images * config.fitted / (config.fitted + config.held_out))
    fitted, held_out = _parted([batch.images for batch in batches], cut)
    known = [batch.labels for batch in batches if batch.labels is not None]
    labels = _parted(known, cut)[1] if len(known) == len(batches) else None
    # Other weights or images give other damages.
    name = digest_of([recipe.model, data, recipe.seed, file_state(recipe.model), images, cut])
    return DamageMeter(model, fitted, held_out, labels, folder / f"damages-{name}.json")


def _open(recipe: Recipe, model: nn.Module, **options: Any) -> Loader:
    """Training images, as they are."""
    data = recipe.data
    assert data is not None
    given: dict[str, Any] = {"batch_size": data.batch_size, "seed": recipe.seed, **options}
    return open_loader(data_config(data), model, split="train", **given)


def _parted(batches: Sequence[Any], cut: int) -> tuple[list[Any], list[Any]]:
    """Batches of the first ``cut`` samples and of the others, both with one at least."""
    total = sum(len(batch) for batch in batches)
    cut = min(max(1, cut), total - 1)
    first, rest, seen = list[Any](), list[Any](), 0
    for batch in batches:
        inside = min(max(0, cut - seen), len(batch))
        first += [batch[:inside]] if inside else []
        rest += [batch[inside:]] if inside < len(batch) else []
        seen += len(batch)
    return first, rest
