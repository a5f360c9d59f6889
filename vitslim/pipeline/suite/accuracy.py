"""The accuracy-latency table on the built-in images: one teacher, many students, the same budget for each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitslim.bench.accuracy import ACCURACY_FILE, AccuracyReport, TrainedModel
from vitslim.bench.environment import environment
from vitslim.bench.suite import DENSE, SMALLER, SuiteReport, SuiteRow
from vitslim.checkpoint import load_config
from vitslim.errors import ConfigError
from vitslim.files import read_json, write_json
from vitslim.pipeline.suite.preset import (
    CONTROL,
    MODELS_FOLDER,
    SPEED_FOLDER,
    TEACHER,
    AccuracyPreset,
    Competitor,
    Grid,
    Group,
    ModelEntry,
    SuitePreset,
    Timing,
    read_preset,
)
from vitslim.pipeline.suite.runner import Folder, Job, Runner, TimeBudget, require_device
from vitslim.pipeline.suite.speed import run_suite
from vitslim.pipeline.suite.training import BEGUN_FILE, model_digest, train_model
from vitslim.progress import ProgressCallback, silent


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
        again: train once more the models that failed, and the students that other settings trained in this folder,
            which are refused without it.
        overrides: assignments such as ``budget.steps=100``.
        isolate: each training, and each measurement of speed, in a child process.

    Raises:
        ConfigError: a faulty preset, or the folder holds something else.
        MissingDependencyError: the preset's device is absent.
    """
    settings, root = read_preset(AccuracyPreset, preset, quick=quick, overrides=overrides), Path(out)
    require_device(settings.device, Path(preset).stem)
    folder = Folder(root, MODELS_FOLDER, TrainedModel)
    jobs = [_job(name, settings) for name in [TEACHER, *settings.names]]
    _refuse_other_settings(root, jobs, again=again)
    budget = TimeBudget(minutes)
    runner = Runner(folder, train_model, (settings, root), budget, progress, again=again, isolate=isolate)
    is_whole = runner.run(jobs[:1]) and folder.known[TEACHER].row is not None and runner.run(jobs)
    trained = {job.name: found for job in jobs if (found := folder.outcome(job)) is not None}
    left, speed = budget.seconds_left, None
    if is_whole and (left is None or left > 0):
        speed = run_suite(
            root / SPEED_FOLDER,
            preset=_speed_preset(settings, root, trained),
            minutes=None if left is None else left / 60,
            again=again,
            isolate=isolate,
            progress=progress,
        )
    report = AccuracyReport(
        preset=Path(preset).stem,
        quick=quick,
        command=command,
        settings=settings.model_dump(mode="json"),
        environment=[environment(), *(one.environment for one in trained.values())][-1],
        drawn_images_per_second=trained[TEACHER].drawn_images_per_second if TEACHER in trained else None,
        rows=[one.row.model_copy(update={"speed": _timed(name, speed)}) for name, one in trained.items() if one.row],
        left=_left(jobs, trained, speed),
        aims=list(settings.targets),
        notes=_notes(settings, trained, speed),
    )
    write_json(root / ACCURACY_FILE, report.model_dump(mode="json"))
    return report


def _job(name: str, preset: AccuracyPreset) -> Job[TrainedModel]:
    digest = model_digest(preset, name)
    return Job(name, digest, (name, digest), TrainedModel, pauses=True)


def _refuse_other_settings(root: Path, jobs: list[Job[TrainedModel]], *, again: bool) -> None:
    """Refuse to replace trainings, which are expensive, unless that is asked for."""
    others = [job.name for job in jobs if _was_begun_otherwise(root / job.name / BEGUN_FILE, job.digest)]
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


def _was_begun_otherwise(file: Path, digest: str) -> bool:
    return file.is_file() and read_json(file) != {"digest": digest}


def _speed_preset(preset: AccuracyPreset, root: Path, trained: Mapping[str, TrainedModel]) -> SuitePreset:
    """The suite's preset for the models that were trained, with the blocks that their conversions chose."""
    speed, size = preset.speed, {"num_classes": preset.data.classes}
    models = {TEACHER: _sized(preset.model, size, smaller="sibling" if preset.sibling else None)}
    if preset.sibling is not None:
        models["sibling"] = _sized(preset.sibling, size)
    others = [name for name in preset.names[1:] if trained[name].row is not None]
    competitors = {name: _competitor(root / name / "model") for name in others if name != SMALLER}
    group = Group(
        models=(TEACHER,),
        sizes=(preset.data.image_size,),
        competitors=tuple(others),
        **speed.model_dump(include={*Grid.model_fields}),
    )
    shared = speed.model_dump(include={*Timing.model_fields})
    return SuitePreset(device=preset.device, models=models, competitors=competitors, groups=(group,), **shared)


def _competitor(folder: Path) -> Competitor:
    saved = load_config(folder)
    return Competitor(
        convert=tuple({"method": one.method, **one.options} for one in saved.conversions), plan=saved.plan
    )


def _sized(entry: ModelEntry, options: Mapping[str, Any], smaller: str | None = None) -> ModelEntry:
    return ModelEntry(name=entry.name or "builtin", options={**entry.options, **options}, smaller=smaller)


def _timed(name: str, speed: SuiteReport | None) -> list[SuiteRow]:
    own = DENSE if name in (TEACHER, CONTROL) else name
    return [] if speed is None else [row for row in speed.rows if row.model == own]


def _left(jobs: list[Job[TrainedModel]], trained: Mapping[str, TrainedModel], speed: SuiteReport | None) -> list[str]:
    untrained = [job.name for job in jobs if job.name not in trained]
    if untrained or speed is None:
        return [*untrained, "speed"]
    return [f"speed of {name}" for name in speed.left]


def _notes(preset: AccuracyPreset, trained: Mapping[str, TrainedModel], speed: SuiteReport | None) -> list[str]:
    notes = [
        f"Every student and the dense control were distilled from the teacher for {preset.budget.steps} steps of "
        f"{preset.batch_size} images; the control is the teacher with just that."
    ]
    if "lower-resolution" in preset.baselines:
        notes.append("lower-resolution learned from labels alone, since the teacher takes larger images.")
    if SMALLER in preset.baselines:
        notes.append("smaller-sibling was trained from nothing as the teacher was, and then distilled like the others.")
    if warm := [name for name, student in preset.students.items() if student.warm_start]:
        notes.append(
            f"{', '.join(warm)}: new modules were fitted layer by layer for {preset.warm_start.steps} steps first."
        )
    notes += [f"{name}: {one.status}, {one.reason}" for name, one in trained.items() if one.row is None]
    if speed is not None:
        notes += dict.fromkeys(note for case in speed.pieces for note in case.notes)
        notes += [f"{case.piece.name}: {case.status}, {case.reason}" for case in speed.pieces if not case.rows]
    return notes
