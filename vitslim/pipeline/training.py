"""Training one model into its own folder, outside of a recipe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitslim import checkpoint
from vitslim.data import AugmentConfig, DataConfig
from vitslim.errors import ConfigError
from vitslim.files import check_output_folder, write_json
from vitslim.models import describe
from vitslim.models.digest import tensors_sha256
from vitslim.pipeline.devices import on_device
from vitslim.pipeline.images import labels_for, open_loader
from vitslim.pipeline.outline import Announce, Outline, budget_of, keep_quiet, outline_images
from vitslim.pipeline.staging import place_to_resume
from vitslim.pipeline.teacher_check import warn_of_poor_teacher
from vitslim.progress import ProgressCallback, silent
from vitslim.recipe import read_settings_file, with_overrides
from vitslim.train import DistillConfig, PretrainConfig
from vitslim.train import distill as train
from vitslim.train import evaluate as measure
from vitslim.train.log import LOG_FILE
from vitslim.train.processes import device_of_process, ending_together, open_accelerator, started_processes
from vitslim.train.state import STATE_FILE, read_run_state
from vitslim.trunk import is_converted, trunk_of
from vitslim.validation import validated

_FOLDER = "train"  # of log, state and result, inside the folder of the model


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
    found = validated(TrainSettings, merged, "--set: ")
    return DistillConfig(**found.model_dump(include=set(DistillConfig.model_fields))), found.augment


def read_pretrain_config(path: str | Path) -> PretrainConfig:
    """Phases of a training from scratch, from a YAML file.

    Raises:
        ConfigError: unreadable YAML, unknown settings or values out of range.
    """
    return validated(PretrainConfig, read_settings_file(path, "settings such as phases: [...]"), f"{path}: ")


def claim_folder(folder: Path, device: str, *, resume: bool, overwrite: bool) -> str | None:
    """Refuse a folder in which no training may begin, or go on; the main one of several processes looks for all.

    Returns:
        What a resumed training finds there, as a sentence; in the main process only.

    Raises:
        CheckFailedError: the main process refused the folder, and this is another one.
        CheckpointError: the state that lies there is damaged.
        ConfigError: the folder holds something else.
    """
    processes = started_processes()
    with ending_together(processes):
        if processes.count > 1:
            open_accelerator(torch.device(device_of_process(device)))
        note = _claim(folder, resume=resume, overwrite=overwrite) if processes.is_main else None
        # Nobody begins, or waits for the others, before the main one has agreed.
        processes.gather(note)
    return note


def _claim(folder: Path, *, resume: bool, overwrite: bool) -> str | None:
    if not resume:
        check_output_folder(folder, overwrite=overwrite)
        return None
    place = place_to_resume(folder) / _FOLDER
    state = place / STATE_FILE
    if state.is_file():
        found = read_run_state(state)
        rest = "has made all its steps and is measured and saved again" if found.finished else "goes on"
        return f"the training in {folder} {rest} after step {found.step}"
    if (place / LOG_FILE).is_file():
        return f"the training in {folder} ended before a state was written; it begins again at the first step"
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise ConfigError(
            f"--resume: {folder} holds files but no training to go on with ({state} is missing); name the folder of "
            "one, or leave --resume out and pass --overwrite"
        )
    check_output_folder(folder, overwrite=overwrite)
    return f"{folder} holds no training to go on with; it begins at the first step"


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
    announce: Announce = keep_quiet,
) -> dict[str, Any]:
    """Train, evaluate, and save a model with its log, settings and metrics.

    Of several processes all train and measure, and the main one writes.

    Args:
        announce: called with an ``Outline`` before the training, by the main process.

    Returns:
        ``{"out", "result", "metrics"}`` as plain data.
    """
    folder, processes = Path(out), started_processes()
    reported = progress if processes.is_main else silent
    device = device_of_process(device)
    student = on_device(student, device)
    dense = None if teacher is None else on_device(teacher, device)
    shared: dict[str, Any] = {"teacher": dense, "batch_size": batch_size, **labels_for(student)}
    loader = open_loader(data, student, split="train", training=True, seed=config.seed, augment=augment, **shared)
    held_out = open_loader(data, student, split="val", **shared)
    source = data.source if isinstance(data, DataConfig) else str(data)
    images = outline_images(source, student, loader, held_out, augment or AugmentConfig())
    budget = [budget_of("training" if dense is None else "distillation", config, batch_size)]
    if processes.is_main:
        announce(Outline(model=_name(student), methods=_methods(student), teacher=None, images=images, budget=budget))
        if dense is not None and not resume:
            warn_of_poor_teacher(dense, student, data, batch_size=batch_size, progress=progress)
    result = train(
        student,
        dense,
        loader,
        config,
        val_loader=held_out,
        out_dir=folder / _FOLDER,
        resume=resume,
        facts={role: _identity(model) for role, model in (("student", student), ("teacher", dense)) if model},
        progress=reported,
    )
    with ending_together(processes):
        metrics = {"student": measure(student, held_out, teacher=dense, processes=processes, progress=reported)}
        if dense is not None:
            metrics["teacher"] = measure(dense, held_out, processes=processes, progress=reported)
    figures = {name: found.model_dump(mode="json") for name, found in metrics.items()}
    document = {"out": str(folder), "result": result.model_dump(mode="json"), "metrics": figures}
    if processes.is_main:
        names = held_out.class_names
        fitting = None if names is None or len(names) != getattr(student, "num_classes", 0) else list(names)
        checkpoint.save(student, folder, overwrite=True, class_names=fitting, metrics=figures)
        write_json(folder / "metrics.json", figures)
        write_json(folder / _FOLDER / "result.json", document["result"])
    return document


def _name(model: nn.Module) -> str:
    base = trunk_of(model).base if is_converted(model) else describe(model)
    return type(model).__name__ if base is None else base.architecture.removeprefix(":")


def _methods(model: nn.Module) -> list[str]:
    return [entry.method for entry in trunk_of(model).history] if is_converted(model) else []


def _identity(model: nn.Module) -> str:
    """What makes a model known among others: its kind and a digest of its weights."""
    return f"{type(model).__name__} with weights {tensors_sha256(model.state_dict())[:12]}"
