"""Training the teacher and its students, each in a folder of its own, so that each can be stopped and resumed."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitslim import checkpoint
from vitslim.bench.code import TRAINING, code_digest
from vitslim.bench.cost import count_macs, count_parameters
from vitslim.bench.environment import environment
from vitslim.bench.suite import SMALLER
from vitslim.data import Loader, open_rendered
from vitslim.data.randomness import seeded
from vitslim.files import read_json, write_json
from vitslim.methods import convert
from vitslim.models import init_from_scratch_, preprocessing
from vitslim.opening import open_model
from vitslim.pipeline.accuracy.preset import CONTROL, TEACHER, AccuracyPreset
from vitslim.pipeline.baselines import BASELINES
from vitslim.pipeline.devices import device_named
from vitslim.pipeline.suite.preset import ModelEntry
from vitslim.progress import Progress, ProgressCallback
from vitslim.runtime.versions import library_versions
from vitslim.train import DistillConfig, TrainResult, distill, evaluate, warm_start
from vitslim.train.settings import resolve_precision

BEGUN_FILE = "begun.json"
RESULT_FILE = "result.json"
_LIBRARIES = ("torch", "timm", "vitslim")
_KEPT = ("steps", "images", "seconds", "images_per_second", "precision", "losses")


class PausedError(Exception):
    """The time of this call is over; the state is written."""


@dataclass
class Trainer:
    """Makes the trained models of one run of the benchmark.

    Args:
        pause: whether the time is over.
    """

    preset: AccuracyPreset
    root: Path
    pause: Callable[[], bool]
    progress: ProgressCallback

    def result(self, name: str) -> dict[str, Any] | None:
        """What an earlier call found for this model, with the same preset."""
        path = self.root / name / RESULT_FILE
        found = read_json(path) if path.is_file() else None
        return found if isinstance(found, dict) and found.get("digest") == digest_of(self.preset, name) else None

    def train(self, name: str) -> dict[str, Any]:
        """Train a model to its end, or go on with it; what it reached as plain data.

        Raises:
            PausedError: the time is over; the next call goes on.
        """
        known = self.result(name)
        if known is not None:
            return known
        folder = self._claim(name)
        made = self._teacher_model(folder) if name == TEACHER else self._student(name, folder)
        return self._finish(name, made, folder)

    @cached_property
    def teacher(self) -> nn.Module:
        """The trained teacher on the device."""
        return checkpoint.load(self.root / TEACHER / "model").to(self._device)

    # --- one model ---------------------------------------------------------------------------------------------------

    def _teacher_model(self, folder: Path) -> _Made:
        model, trained = self._from_nothing(self.preset.model, folder / "train", TEACHER)
        return _Made(model, trained, reference=None)

    def _student(self, name: str, folder: Path) -> _Made:
        preset = self.preset
        if name == SMALLER:
            assert preset.sibling is not None
            student, _ = self._from_nothing(preset.sibling, folder / "scratch", f"{name}, labels")
        elif name == "lower-resolution":
            # Its images are smaller than the teacher's, so it learns from labels: all of the weight goes there.
            student = BASELINES[name](self.teacher)
            labels = preset.budget.model_copy(update={"hard": 1.0, "soft": 0.0, "tokens": 0.0, "step_outputs": 0.0})
            trained = self._distill(student, None, labels, folder / "train", name)
            return _Made(student, trained, reference=None)
        else:
            student = self._converted(name, folder)
        budget = preset.budget
        if name == SMALLER:
            budget = budget.model_copy(update={"tokens": 0.0, "step_outputs": 0.0})  # of another width
        trained = self._distill(student, self.teacher, budget, folder / "train", name)
        return _Made(student, trained, reference=self.teacher)

    def _converted(self, name: str, folder: Path) -> nn.Module:
        if name == CONTROL:
            return copy.deepcopy(self.teacher)
        if name == "depth-drop":
            return convert(self.teacher, "depth", layers="auto", analysis=self._analysis())
        spec = self.preset.students[name]
        model = self.teacher
        for entry in spec.convert:
            options = {key: value for key, value in entry.items() if key != "method"}
            evidence = self._analysis() if "auto" in options.values() else None
            model = convert(model, str(entry["method"]), analysis=evidence, **options)
        if spec.warm_start:
            self._warm_start(model, folder / "warm_start", name)
        return model

    def _from_nothing(self, entry: ModelEntry, folder: Path, name: str) -> tuple[nn.Module, TrainResult]:
        task = self.preset.data
        with seeded(task.seed):
            model = open_model(
                entry.name or "builtin",
                pretrained=False,
                img_size=task.image_size,
                num_classes=task.classes,
                **entry.options,
            )
        model = init_from_scratch_(model, task.seed).to(self._device)
        return model, self._distill(model, None, self.preset.teacher, folder, name)

    def _finish(self, name: str, made: _Made, folder: Path) -> dict[str, Any]:
        model = made.model
        precision = resolve_precision("auto", self._device)
        loader = self._loader(model, "val")
        found = evaluate(model, loader, teacher=made.reference, precision=precision, progress=self._told_as(name))
        result = {
            "digest": digest_of(self.preset, name),
            "name": name,
            "environment": environment(),
            "metrics": found.model_dump(mode="json"),
            "params": count_parameters(model),
            "macs": count_macs(model),
            "image_size": list(preprocessing(model).image_size),
            "trained": made.trained.model_dump(mode="json", include=set(_KEPT)),
        }
        checkpoint.save(model.cpu(), folder / "model", overwrite=True)
        write_json(folder / RESULT_FILE, result)
        return result

    # --- its parts ---------------------------------------------------------------------------------------------------

    def _distill(
        self, model: nn.Module, teacher: nn.Module | None, config: DistillConfig, folder: Path, name: str
    ) -> TrainResult:
        told = self._told_as(name)
        loader = self._loader(model, "train")
        done = distill(model, teacher, loader, config, out_dir=folder, resume=True, progress=told, pause=self.pause)
        return self._go_on(done)

    def _warm_start(self, model: nn.Module, folder: Path, name: str) -> None:
        told, loader = self._told_as(f"{name}, warm start"), self._loader(model, "train")
        config = self.preset.warm_start
        done = warm_start(
            model, self.teacher, loader, config, out_dir=folder, resume=True, progress=told, pause=self.pause
        )
        self._go_on(done)

    def _go_on(self, done: TrainResult) -> TrainResult:
        if done.stopped == "paused" or self.pause():
            raise PausedError
        return done

    def _analysis(self) -> Any:
        from vitslim.analysis import AnalysisReport, analyze

        path = self.root / TEACHER / "analysis.json"
        if not path.is_file():
            loader = self._loader(self.teacher, "val")
            images = self.preset.analyze_images
            report = analyze(self.teacher, loader, images=images, replacement_images=images // 4)
            write_json(path, report.model_dump(mode="json"))
        return AnalysisReport.model_validate(read_json(path))

    def _loader(self, model: nn.Module, split: Any, batch_size: int | None = None) -> Loader:
        return open_rendered(
            self.preset.data.fractals(),
            split=split,
            preprocessing=preprocessing(model),
            batch_size=batch_size or self.preset.batch_size,
            device=self._device,
            training=split == "train",
        )

    def _claim(self, name: str) -> Path:
        """The model's folder; what other settings left there goes."""
        folder, own = self.root / name, {"digest": digest_of(self.preset, name)}
        begun = folder / BEGUN_FILE
        if not begun.is_file() or read_json(begun) != own:
            shutil.rmtree(folder, ignore_errors=True)
            write_json(begun, own)
        return folder

    def _told_as(self, stage: str) -> ProgressCallback:
        def tell(one: Progress) -> None:
            self.progress(replace(one, stage=stage))

        return tell

    @property
    def _device(self) -> torch.device:
        return device_named(self.preset.device)


@dataclass(frozen=True)
class _Made:
    """A trained model, and the teacher where it can be compared with it image by image."""

    model: nn.Module
    trained: TrainResult
    reference: nn.Module | None


def digest_of(preset: AccuracyPreset, name: str) -> str:
    """A number of all that decides how a model is trained, versions and code among it; where its speed is measured,
    and on what hardware it is trained, does not.
    """
    facts: dict[str, Any] = preset.model_dump(mode="json", include={"model", "data", "batch_size", "teacher"})
    facts["versions"] = {name: version for name, version in library_versions().items() if name in _LIBRARIES}
    # What kernels are tuned to changes nothing that is learned.
    facts["code"] = code_digest(parts=TRAINING, kinds=(".py",))
    if name != TEACHER:
        facts["budget"] = preset.budget.model_dump(mode="json")
    if name in preset.students:
        facts["student"] = preset.students[name].model_dump(mode="json")
        facts["analyze_images"] = preset.analyze_images
        if preset.students[name].warm_start:
            facts["warm_start"] = preset.warm_start.model_dump(mode="json")
    if name == SMALLER and preset.sibling is not None:
        facts["sibling"] = preset.sibling.model_dump(mode="json")
    return hashlib.sha256(json.dumps([name, facts], sort_keys=True).encode()).hexdigest()[:16]
