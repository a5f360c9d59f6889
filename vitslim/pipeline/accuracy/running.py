"""The accuracy-latency table on the built-in images: one teacher, many students, the same budget for each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from vitslim.bench.accuracy import ACCURACY_FILE, AccuracyReport, AccuracyRow
from vitslim.bench.environment import environment
from vitslim.bench.suite import DENSE, SMALLER, Kind, SuiteReport, SuiteRow
from vitslim.checkpoint import load_config
from vitslim.data import open_rendered
from vitslim.errors import ConfigError
from vitslim.files import read_json, write_json
from vitslim.models import preprocessing
from vitslim.opening import open_model
from vitslim.pipeline.accuracy.preset import CONTROL, SPEED_FOLDER, TEACHER, AccuracyPreset, read_accuracy_preset
from vitslim.pipeline.accuracy.training import BEGUN_FILE, PausedError, Trainer, digest_of
from vitslim.pipeline.suite.preset import Competitor, Group, ModelEntry, Preset, require_device
from vitslim.pipeline.suite.running import run_suite
from vitslim.progress import Progress, ProgressCallback, silent

_MARGIN_SECONDS = 5.0  # for the state to be written
_HARDWARE = ("cpu", "gpu", "driver")  # on which models of one run may have been trained apart
_DRAWN_BATCHES = 4  # on which the drawing of images is timed


def run_accuracy(
    out: str | Path,
    *,
    preset: str = "cpu",
    quick: bool = False,
    minutes: float | None = None,
    again: bool = False,
    overrides: tuple[str, ...] = (),
    isolate: bool = True,
    command: str = "vitslim bench accuracy",
    progress: ProgressCallback = silent,
) -> AccuracyReport:
    """Train the teacher, its students and the baselines, measure their speed, write accuracy.json.

    Stopped by ``minutes``, or by anything else, it goes on where it was when it is called again.

    Args:
        out: a new folder, or that of an earlier call.
        preset: ``cpu``, ``gpu`` or a YAML file.
        again: train the students anew that other settings trained in this folder; without it they are refused.
        overrides: assignments such as ``budget.steps=100``.
        isolate: speed is measured in a child process.

    Raises:
        ConfigError: a faulty preset, or the folder holds something else.
        MissingDependencyError: the preset's device is absent.
    """
    settings = read_accuracy_preset(preset, quick=quick, overrides=overrides)
    device = require_device(settings.device, Path(preset).stem)
    root = Path(out)
    _claim(root, settings, again=again)
    end = None if minutes is None else time.perf_counter() + 60 * minutes - _MARGIN_SECONDS
    trainer = Trainer(settings, root, lambda: end is not None and time.perf_counter() > end, progress)
    is_whole = _train_all(trainer, settings, progress)
    speed = None
    left = None if end is None else (end - time.perf_counter()) / 60
    if is_whole and (left is None or left > 0):
        speed = run_suite(
            root / SPEED_FOLDER, preset=_speed_preset(settings, root), minutes=left, isolate=isolate, progress=progress
        )
    environments = _environments(trainer, settings)
    report = AccuracyReport(
        preset=Path(preset).stem,
        quick=quick,
        command=command,
        settings=settings.model_dump(mode="json"),
        environment=[environment(), *environments.values()][-1],
        drawn_images_per_second=_drawing_speed(settings, device),
        rows=_rows(trainer, settings, speed),
        left=_left(trainer, settings, speed),
        aims=list(settings.aims),
        notes=[*_notes(settings, speed), *_differences(environments)],
    )
    write_json(root / ACCURACY_FILE, report.model_dump(mode="json"))
    return report


def _claim(root: Path, preset: AccuracyPreset, *, again: bool) -> None:
    if root.exists() and not root.is_dir():
        raise ConfigError(f"output {root} is a file; name a folder")
    if not root.is_dir() or not any(root.iterdir()):
        return
    if not (root / TEACHER / BEGUN_FILE).is_file():
        raise ConfigError(f"output folder {root} holds files that no accuracy benchmark wrote; name another folder")
    others = [name for name in [TEACHER, *preset.names] if _is_of_other_settings(root / name, digest_of(preset, name))]
    if TEACHER in others:
        raise ConfigError(
            f"output folder {root} holds another teacher (other --quick, --set, preset, versions or code); name "
            "another folder, or remove this one to train anew"
        )
    if others and not again:
        raise ConfigError(
            f"output folder {root} holds {', '.join(others)} of other settings (--set or preset); name another folder, "
            "or add --again to train them anew"
        )


def _is_of_other_settings(folder: Path, digest: str) -> bool:
    begun = folder / BEGUN_FILE
    return begun.is_file() and read_json(begun) != {"digest": digest}


def _train_all(trainer: Trainer, preset: AccuracyPreset, progress: ProgressCallback) -> bool:
    """Whether all models are trained; otherwise the time was over."""
    names = [TEACHER, *preset.names]
    for done, name in enumerate(names):
        progress(Progress("accuracy", done, len(names), "models"))
        try:
            trainer.train(name)
        except PausedError:
            return False
    progress(Progress("accuracy", len(names), len(names), "models"))
    return True


def _speed_preset(preset: AccuracyPreset, root: Path) -> Preset:
    """The suite's preset for the models that were trained, with the blocks that their conversions chose."""
    speed, task = preset.speed, preset.data
    size: dict[str, Any] = {"num_classes": task.classes}
    models = {"teacher": _sized(preset.model, size, smaller="sibling" if preset.sibling else None)}
    if preset.sibling is not None:
        models["sibling"] = _sized(preset.sibling, size)
    competitors = {
        name: Competitor(
            convert=tuple(
                {"method": one.method, **one.options} for one in load_config(root / name / "model").conversions
            )
        )
        for name in preset.students
    }
    group = Group(
        models=("teacher",),
        sizes=(task.image_size,),
        precisions=speed.precisions,
        backends=speed.backends,
        batches=speed.batches,
        competitors=(*preset.students, *preset.baselines),
    )
    shared = speed.model_dump(include={"rounds", "warmup", "seconds", "threads", "energy"})
    return Preset(device=preset.device, models=models, competitors=competitors, groups=(group,), **shared)


def _sized(entry: ModelEntry, options: Mapping[str, Any], smaller: str | None = None) -> ModelEntry:
    return ModelEntry(name=entry.name or "builtin", options={**entry.options, **options}, smaller=smaller)


def _rows(trainer: Trainer, preset: AccuracyPreset, speed: SuiteReport | None) -> list[AccuracyRow]:
    rows: list[AccuracyRow] = []
    for name in [TEACHER, *preset.names]:
        found = trainer.result(name)
        if found is None:
            continue
        metrics, trained = cast("dict[str, Any]", found["metrics"]), cast("dict[str, Any]", found["trained"])
        timed = _timed(DENSE if name in (TEACHER, CONTROL) else name, speed)
        rows.append(
            AccuracyRow(
                model=name,
                kind=_kind(name, preset),
                top1=metrics["top1"],
                agreement=metrics["agreement"],
                images=metrics["images"],
                params=found["params"],
                macs=found["macs"],
                steps=trained["steps"],
                trained_images_per_second=trained["images_per_second"],
                speed=timed,
            )
        )
    return rows


def _timed(name: str, speed: SuiteReport | None) -> list[SuiteRow]:
    return [] if speed is None else [row for row in speed.rows if row.model == name]


def _kind(name: str, preset: AccuracyPreset) -> Kind:
    if name in preset.students:
        return "pair" if len(preset.students[name].convert) > 1 else "method"
    return "baseline" if name in preset.baselines else "dense"


def _left(trainer: Trainer, preset: AccuracyPreset, speed: SuiteReport | None) -> list[str]:
    untrained = [name for name in [TEACHER, *preset.names] if trainer.result(name) is None]
    if untrained:
        return [*untrained, "speed"]
    return ["speed"] if speed is None else [f"speed of {name}" for name in speed.left]


def _notes(preset: AccuracyPreset, speed: SuiteReport | None) -> list[str]:
    steps = preset.budget.steps
    notes = [
        f"Every student and the dense control were distilled from the teacher for {steps} steps of {preset.batch_size} "
        "images; the control is the teacher with just that."
    ]
    if "lower-resolution" in preset.baselines:
        notes.append("lower-resolution learned from labels alone, since the teacher takes larger images.")
    if SMALLER in preset.baselines:
        notes.append("smaller-sibling was trained from nothing as the teacher was, and then distilled like the others.")
    if any(student.warm_start for student in preset.students.values()):
        warm = [name for name, student in preset.students.items() if student.warm_start]
        notes.append(
            f"{', '.join(warm)}: new modules were fitted layer by layer for {preset.warm_start.steps} steps first."
        )
    if speed is not None:
        notes += dict.fromkeys(note for piece in speed.pieces for note in piece.notes)
        notes += [f"{piece.piece.name}: {piece.status}, {piece.reason}" for piece in speed.pieces if not piece.rows]
    return notes


def _environments(trainer: Trainer, preset: AccuracyPreset) -> dict[str, dict[str, Any]]:
    """Of every model that is trained, in order."""
    found = {name: trainer.result(name) for name in [TEACHER, *preset.names]}
    return {name: result["environment"] for name, result in found.items() if result and "environment" in result}


def _differences(environments: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for every model that was not trained where, and with what, the last one was."""
    last = [*environments.values()][-1:]
    apart = {
        name: [key for key in _HARDWARE if own.get(key) != other.get(key)]
        for name, own in environments.items()
        for other in last
    }
    return [
        f"{name} was trained with other {', '.join(keys)} than the last model." for name, keys in apart.items() if keys
    ]


def _drawing_speed(preset: AccuracyPreset, device: torch.device) -> float | None:
    """Images per second that the drawing alone gives: far above the training's, or it starves it.

    ``None`` for a set of one batch, which is drawn before the clock starts.
    """
    entry = preset.model
    with torch.device("meta"):
        model: nn.Module = open_model(
            entry.name or "builtin", pretrained=False, img_size=preset.data.image_size, **entry.options
        )
    loader = open_rendered(
        preset.data.fractals(),
        split="train",
        preprocessing=preprocessing(model),
        batch_size=preset.batch_size,
        device=device,
        training=True,
    )
    batches = iter(loader)
    next(batches)
    _wait(device)
    began, drawn = time.perf_counter(), 0
    for _, batch in zip(range(_DRAWN_BATCHES), batches, strict=False):
        drawn += len(batch)
    _wait(device)
    return drawn / (time.perf_counter() - began) if drawn else None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
