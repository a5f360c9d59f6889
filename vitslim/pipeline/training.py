"""Training one model into its own folder, outside of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitslim import checkpoint
from vitslim.data import AugmentConfig, DataConfig
from vitslim.errors import ConfigError
from vitslim.files import write_json
from vitslim.pipeline.teacher_check import warn_of_poor_teacher
from vitslim.pipeline.verbs import labels_for, on_device, open_any, open_loader
from vitslim.progress import ProgressCallback, silent
from vitslim.recipe import describe_faults, read_settings_file, with_overrides
from vitslim.train import DistillConfig, PretrainConfig
from vitslim.train import distill as train
from vitslim.train import evaluate as measure
from vitslim.train.start import start_from_scratch_


class TrainSettings(DistillConfig):
    """What ``vitslim train --set`` takes: the training itself, and how its images are changed."""

    augment: AugmentConfig = AugmentConfig()


def read_settings(defaults: Mapping[str, Any], settings: Iterable[str] | None) -> tuple[DistillConfig, AugmentConfig]:
    """Training and augmentation settings from defaults and ``key=value`` assignments, as ``lr=1e-3 augment.hflip=0``.

    Raises:
        ConfigError: unknown settings or values out of range.
    """
    merged = with_overrides(defaults, settings or [])
    if merged.get("steps") is not None:
        merged.pop("epochs", None)
    try:
        found = TrainSettings.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(f"--set: {'; '.join(describe_faults(error, TrainSettings))}") from None
    return DistillConfig(**found.model_dump(include=set(DistillConfig.model_fields))), found.augment


def read_pretrain_config(path: str | Path) -> PretrainConfig:
    """Phases of a training from scratch, from a YAML file.

    Raises:
        ConfigError: unreadable YAML, unknown settings or values out of range.
    """
    document = read_settings_file(path, "settings such as phases: [...]")
    try:
        return PretrainConfig(**document)
    except ValidationError as error:
        raise ConfigError(f"{path}: {'; '.join(describe_faults(error, PretrainConfig))}") from None


def open_untrained(model: str, seed: int, **options: Any) -> nn.Module:
    """A model with random weights: a named one, or the shape of a saved one.

    Raises:
        ConfigError: unknown name, or options for something that was saved.
    """
    torch.manual_seed(seed)
    if checkpoint.is_saved_model(model):
        given = [name for name, value in options.items() if value is not None]
        if given:
            raise ConfigError(f"{model} is a saved model, which knows its own {', '.join(given)}; leave them out")
        return checkpoint.build(checkpoint.load_config(model)).eval()
    fresh = open_any(model, pretrained=False, **options)
    # Our own start is written for plain ViTs; others keep timm's.
    is_plain = type(fresh) is VisionTransformer and fresh.pos_embed is not None
    return start_from_scratch_(fresh, seed) if is_plain else fresh


def train_to_folder(
    student: nn.Module,
    teacher: nn.Module | None,
    data: str | Path | DataConfig,
    config: DistillConfig,
    out: str | Path,
    *,
    augment: AugmentConfig | None = None,
    batch_size: int = 64,
    device: str = "cpu",
    resume: bool = False,
    progress: ProgressCallback = silent,
) -> dict[str, Any]:
    """Train, evaluate, and save a model with its log, settings and metrics.

    Returns:
        ``{"out", "result", "metrics"}`` as plain data.
    """
    folder = Path(out)
    student = on_device(student, device)
    dense = None if teacher is None else on_device(teacher, device)
    labels = labels_for(student)
    loader = open_loader(
        data, student, split="train", training=True, batch_size=batch_size, seed=config.seed, augment=augment, **labels
    )
    held_out = open_loader(data, student, split="val", batch_size=batch_size, **labels)
    if dense is not None and not resume:
        warn_of_poor_teacher(dense, student, data, batch_size=batch_size, progress=progress)
    result = train(
        student, dense, loader, config, val_loader=held_out, out_dir=folder / "train", resume=resume, progress=progress
    )
    metrics = {"student": measure(student, held_out, teacher=dense, progress=progress).model_dump(mode="json")}
    if dense is not None:
        metrics["teacher"] = measure(dense, held_out, progress=progress).model_dump(mode="json")
    names = held_out.class_names
    checkpoint.save(
        student, folder, overwrite=True, class_names=None if names is None else list(names), metrics=metrics
    )
    write_json(folder / "metrics.json", metrics)
    write_json(folder / "train" / "result.json", result.model_dump(mode="json"))
    return {"out": str(folder), "result": result.model_dump(mode="json"), "metrics": metrics}
