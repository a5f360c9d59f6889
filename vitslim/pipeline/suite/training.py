"""Training the teacher or one of its students, in a folder of its own, so that it can be stopped and resumed."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitslim import checkpoint
from vitslim.analysis import AnalysisReport, analyze
from vitslim.bench.code import TRAINING, code_digest
from vitslim.bench.cost import count_macs, count_parameters
from vitslim.bench.suite import DENSE, FINE_TUNED, SMALLER, TEACHER, AccuracyRow
from vitslim.data import Loader, open_rendered
from vitslim.files import digest_of, read_json, write_json
from vitslim.methods import convert, read_method
from vitslim.models import init_from_scratch_, preprocessing
from vitslim.pipeline.baselines import CONVERSIONS
from vitslim.pipeline.devices import device_named
from vitslim.pipeline.suite.competitors import kind_of, open_competitor
from vitslim.pipeline.suite.preset import Preset, Training
from vitslim.pipeline.suite.process import PausedError
from vitslim.plans import plan_json
from vitslim.progress import Progress, ProgressCallback
from vitslim.runtime.versions import library_versions
from vitslim.train import DistillConfig, TrainResult, distill, evaluate, warm_start
from vitslim.train.settings import resolve_precision
from vitslim.trunk import is_converted, plan_of

_LIBRARIES = ("torch", "timm", "vitslim")
_MARGIN_SECONDS = 5.0  # for the state to be written
LOWER_RESOLUTION = "lower-resolution"
_OF_STUDENTS = {"budget", "warm_start", "analyze_images"}


def train_model(
    name: str, preset: Preset, root: Path, seconds: float | None, progress: ProgressCallback
) -> dict[str, Any]:
    """Train a model to its end, or go on with it: the fields of a ``TrainedModel``; see ``process.Work``.

    What other settings, versions or code have trained lies beside it and stays.

    Raises:
        PausedError: the time is over; the next call goes on.
    """
    own, teacher = (root / f"{one}-{model_digest(preset, one)}" for one in (name, TEACHER))
    end = None if seconds is None else time.perf_counter() + seconds - _MARGIN_SECONDS
    assert preset.training is not None
    return _Trainer(name, preset, preset.training, own, teacher, device_named(preset.device), end, progress).train()


def model_digest(preset: Preset, name: str) -> str:
    """A number of all that decides how a model is trained, versions and code among it; where its speed is measured,
    and on what hardware it is trained, does not.
    """
    assert preset.training is not None
    case = preset.cases()[0]
    return digest_of(
        {
            "model": [name, case.model, case.image_size, preset.models],
            "training": preset.training.model_dump(exclude=_OF_STUDENTS if name == TEACHER else None),
            "conversions": preset.competitors.get(name),
            "versions": {one: version for one, version in library_versions().items() if one in _LIBRARIES},
            # What kernels are tuned to changes nothing that is learned.
            "code": code_digest(parts=TRAINING, kinds=(".py",)),
        }
    )


@dataclass
class _Trainer:
    """Makes one trained model in its folder; ``end`` is when its time is over."""

    name: str
    preset: Preset
    training: Training
    folder: Path
    teacher_folder: Path
    device: torch.device
    end: float | None
    progress: ProgressCallback

    def train(self) -> dict[str, Any]:
        if self.name == TEACHER:
            return self._finish(*self._from_nothing(DENSE, "train"), None)
        budget, teacher = self.training.budget, self.teacher
        if self.name == SMALLER:
            student, _ = self._from_nothing(SMALLER, "scratch")
            budget = budget.model_copy(update={"token_weight": 0.0, "step_output_weight": 0.0})  # of another width
        else:
            student = self._converted()
        if self.name == LOWER_RESOLUTION:
            # Its images are smaller than the teacher's, so it learns from labels: all of the weight goes there.
            zero = dict.fromkeys(("kd_weight", "token_weight", "step_output_weight"), 0.0)
            budget, teacher = budget.model_copy(update={"ce_weight": 1.0, **zero}), None
        return self._finish(student, self._distill(student, teacher, budget, "train"), teacher)

    @cached_property
    def teacher(self) -> nn.Module:
        """The trained teacher on the device."""
        return checkpoint.load(self.teacher_folder / "model").to(self.device)

    def _converted(self) -> nn.Module:
        if self.name == FINE_TUNED:
            return copy.deepcopy(self.teacher)
        student, model = self.preset.competitors.get(self.name), self.teacher
        for config in student.convert if student else [CONVERSIONS[self.name]]:
            method, _ = read_method(config, {})
            model = convert(model, config, analysis=self._analysis() if method.reads_analysis(config) else None)
        if student and student.warm_start:
            loader, settings = self._loader(model, "train"), self.training.warm_start
            self._go_on(
                warm_start(model, self.teacher, loader, settings, out_dir=self.folder / "warm_start", **self._control)
            )
        return model

    def _from_nothing(self, name: str, folder: str) -> tuple[nn.Module, TrainResult]:
        model = open_competitor(name, self.preset.cases()[0], self.preset)
        model = init_from_scratch_(model, self.training.data.seed).to(self.device)
        return model, self._distill(model, None, self.training.teacher, folder)

    def _finish(self, model: nn.Module, trained: TrainResult, reference: nn.Module | None) -> dict[str, Any]:
        """Evaluate and keep a model; ``reference`` is the teacher where both see the same images."""
        precision, loader = resolve_precision("auto", self.device), self._loader(model, "val")
        found = evaluate(model, loader, teacher=reference, precision=precision, progress=self._tell)
        assert found.top1 is not None, "the built-in images have labels"
        checkpoint.save(model.cpu(), self.folder / "model", overwrite=True)
        row = AccuracyRow(
            kind=kind_of(self.name, self.preset.competitors),
            top1=found.top1,
            agreement=found.agreement,
            images=found.images,
            params=count_parameters(model),
            macs=count_macs(model),
            steps=trained.steps,
        )
        return {"row": row, "plan": plan_json(plan_of(model)) if is_converted(model) else None}

    def _distill(self, model: nn.Module, teacher: nn.Module | None, config: DistillConfig, folder: str) -> TrainResult:
        loader = self._loader(model, "train")
        return self._go_on(distill(model, teacher, loader, config, out_dir=self.folder / folder, **self._control))

    def _go_on(self, done: TrainResult) -> TrainResult:
        if done.stopped == "paused" or self._is_over():
            raise PausedError
        return done

    def _is_over(self) -> bool:
        return self.end is not None and time.perf_counter() > self.end

    @property
    def _control(self) -> dict[str, Any]:
        return {"resume": True, "progress": self._tell, "pause": self._is_over}

    def _tell(self, one: Progress) -> None:
        self.progress(replace(one, stage=self.name))

    def _analysis(self) -> AnalysisReport:
        images = self.training.analyze_images
        path = self.teacher_folder / f"analysis-{images}.json"
        if not path.is_file():
            loader = self._loader(self.teacher, "val")
            report = analyze(self.teacher, loader, images=images, replacement_images=images // 4)
            write_json(path, report.model_dump(mode="json"))
        return AnalysisReport.model_validate(read_json(path))

    def _loader(self, model: nn.Module, split: Any) -> Loader:
        return open_rendered(
            self.training.data,
            split=split,
            preprocessing=preprocessing(model),
            batch_size=self.training.batch_size,
            device=self.device,
            training=split == "train",
        )
