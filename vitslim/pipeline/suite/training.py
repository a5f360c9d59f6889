"""Training the teacher or one of its students, in a folder of its own, so that it can be stopped and resumed."""

from __future__ import annotations

import copy
import shutil
import time
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitslim import checkpoint
from vitslim.bench.accuracy import AccuracyRow
from vitslim.bench.code import TRAINING, code_digest
from vitslim.bench.cost import count_macs, count_parameters
from vitslim.bench.suite import SMALLER
from vitslim.data import Loader, open_rendered
from vitslim.data.randomness import seeded
from vitslim.files import read_json, write_json
from vitslim.methods import convert, read_method
from vitslim.models import init_from_scratch_, preprocessing
from vitslim.opening import open_model
from vitslim.pipeline.baselines import CONVERSIONS
from vitslim.pipeline.devices import device_named
from vitslim.pipeline.suite.competitors import kind_of
from vitslim.pipeline.suite.preset import CONTROL, TEACHER, AccuracyPreset, ModelEntry
from vitslim.pipeline.suite.process import PausedError
from vitslim.pipeline.suite.runner import digest_of
from vitslim.progress import Progress, ProgressCallback
from vitslim.runtime.versions import library_versions
from vitslim.train import DistillConfig, TrainResult, distill, evaluate, warm_start
from vitslim.train.settings import resolve_precision

BEGUN_FILE = "begun.json"
_LIBRARIES = ("torch", "timm", "vitslim")
_MARGIN_SECONDS = 5.0  # for the state to be written
_DRAWN_BATCHES = 4  # on which the drawing of images is timed


def train_model(
    model: tuple[str, str], settings: tuple[AccuracyPreset, Path], seconds: float | None, progress: ProgressCallback
) -> dict[str, Any]:
    """Train a model to its end, or go on with it: the fields of a ``TrainedModel``; see ``process.Work``.

    Args:
        model: its name, and the digest of all that decides how it is trained.
        settings: the preset and the output folder.

    Raises:
        PausedError: the time is over; the next call goes on.
    """
    name, digest = model
    end = None if seconds is None else time.perf_counter() + seconds - _MARGIN_SECONDS
    return _Trainer(name, *settings, end, progress).train(digest)


def model_digest(preset: AccuracyPreset, name: str) -> str:
    """A number of all that decides how a model is trained, versions and code among it; where its speed is measured,
    and on what hardware it is trained, does not.
    """
    facts: dict[str, Any] = preset.model_dump(mode="json", include={"model", "data", "batch_size", "teacher"})
    facts["name"] = name
    facts["versions"] = {name: version for name, version in library_versions().items() if name in _LIBRARIES}
    # What kernels are tuned to changes nothing that is learned.
    facts["code"] = code_digest(parts=TRAINING, kinds=(".py",))
    if name != TEACHER:
        facts["budget"] = preset.budget.model_dump(mode="json")
    if name in (*preset.students, *CONVERSIONS):
        facts["analyze_images"] = preset.analyze_images
    if name in preset.students:
        facts["student"] = preset.students[name].model_dump(mode="json")
        if preset.students[name].warm_start:
            facts["warm_start"] = preset.warm_start.model_dump(mode="json")
    if name == SMALLER and preset.sibling is not None:
        facts["sibling"] = preset.sibling.model_dump(mode="json")
    return digest_of(facts)


@dataclass
class _Trainer:
    """Makes one trained model; ``end`` is when its time is over."""

    name: str
    preset: AccuracyPreset
    root: Path
    end: float | None
    progress: ProgressCallback

    def train(self, digest: str) -> dict[str, Any]:
        self._claim(digest)
        if self.name == TEACHER:
            return self._finish(*self._from_nothing(self.preset.model, "train", TEACHER), reference=None)
        if self.name == "lower-resolution":
            # Its images are smaller than the teacher's, so it learns from labels: all of the weight goes there.
            student = self._converted()
            labels = self.preset.budget.model_copy(
                update={"ce_weight": 1.0, "kd_weight": 0.0, "token_weight": 0.0, "step_output_weight": 0.0}
            )
            return self._finish(student, self._distill(student, None, labels, "train"), reference=None)
        budget = self.preset.budget
        if self.name == SMALLER:
            assert self.preset.sibling is not None
            student, _ = self._from_nothing(self.preset.sibling, "scratch", f"{self.name}, labels")
            budget = budget.model_copy(update={"token_weight": 0.0, "step_output_weight": 0.0})  # of another width
        else:
            student = self._converted()
        return self._finish(student, self._distill(student, self.teacher, budget, "train"), reference=self.teacher)

    @cached_property
    def teacher(self) -> nn.Module:
        """The trained teacher on the device."""
        return checkpoint.load(self.root / TEACHER / "model").to(self._device)

    def _converted(self) -> nn.Module:
        if self.name == CONTROL:
            return copy.deepcopy(self.teacher)
        if self.name in CONVERSIONS:
            method, config = read_method(CONVERSIONS[self.name], {})
            evidence = self._analysis() if method.reads_analysis(config) else None
            return convert(self.teacher, config, analysis=evidence)
        student, model = self.preset.students[self.name], self.teacher
        for method, options in student.steps:
            evidence = self._analysis() if "auto" in options.values() else None
            model = convert(model, method, analysis=evidence, **options)
        if student.warm_start:
            progress, loader = self._named(f"{self.name}, warm start"), self._loader(model, "train")
            self._go_on(
                warm_start(
                    model,
                    self.teacher,
                    loader,
                    self.preset.warm_start,
                    out_dir=self._folder / "warm_start",
                    resume=True,
                    progress=progress,
                    pause=self._is_over,
                )
            )
        return model

    def _from_nothing(self, entry: ModelEntry, folder: str, stage: str) -> tuple[nn.Module, TrainResult]:
        task = self.preset.data
        options: dict[str, Any] = {"img_size": task.image_size, "num_classes": task.classes, **entry.options}
        with seeded(task.seed):
            model = open_model(entry.name or "builtin", pretrained=False, **options)
        model = init_from_scratch_(model, task.seed).to(self._device)
        return model, self._distill(model, None, self.preset.teacher, folder, stage)

    def _finish(self, model: nn.Module, trained: TrainResult, reference: nn.Module | None) -> dict[str, Any]:
        """Evaluate and keep a model; ``reference`` is the teacher where both see the same images."""
        precision, loader = resolve_precision("auto", self._device), self._loader(model, "val")
        found = evaluate(model, loader, teacher=reference, precision=precision, progress=self._named(self.name))
        assert found.top1 is not None, "the built-in images have labels"
        drawn = self._drawing_speed(model) if self.name == TEACHER else None
        row = AccuracyRow(
            model=self.name,
            kind="dense" if self.name in (TEACHER, CONTROL) else kind_of(self.name, self.preset.students),
            top1=found.top1,
            agreement=found.agreement,
            images=found.images,
            params=count_parameters(model),
            macs=count_macs(model),
            steps=trained.steps,
            trained_images_per_second=trained.images_per_second,
        )
        checkpoint.save(model.cpu(), self._folder / "model", overwrite=True)
        return {"row": row, "drawn_images_per_second": drawn}

    def _distill(
        self, model: nn.Module, teacher: nn.Module | None, config: DistillConfig, folder: str, stage: str = ""
    ) -> TrainResult:
        return self._go_on(
            distill(
                model,
                teacher,
                self._loader(model, "train"),
                config,
                out_dir=self._folder / folder,
                resume=True,
                progress=self._named(stage or self.name),
                pause=self._is_over,
            )
        )

    def _go_on(self, done: TrainResult) -> TrainResult:
        if done.stopped == "paused" or self._is_over():
            raise PausedError("stopped in time")
        return done

    def _is_over(self) -> bool:
        return self.end is not None and time.perf_counter() > self.end

    def _analysis(self) -> Any:
        from vitslim.analysis import AnalysisReport, analyze

        path = self.root / TEACHER / "analysis.json"
        if not path.is_file():
            images = self.preset.analyze_images
            loader = self._loader(self.teacher, "val")
            report = analyze(self.teacher, loader, images=images, replacement_images=images // 4)
            write_json(path, report.model_dump(mode="json"))
        return AnalysisReport.model_validate(read_json(path))

    def _drawing_speed(self, model: nn.Module) -> float | None:
        """Images per second that the drawing alone gives: far above the training's, or it starves it.

        ``None`` for a set of one batch, which is drawn before the clock starts.
        """
        batches = iter(self._loader(model, "train"))
        next(batches)
        self._wait()
        began = time.perf_counter()
        drawn = sum(len(batch) for batch in islice(batches, _DRAWN_BATCHES))
        self._wait()
        return drawn / (time.perf_counter() - began) if drawn else None

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _loader(self, model: nn.Module, split: Any) -> Loader:
        return open_rendered(
            self.preset.data,
            split=split,
            preprocessing=preprocessing(model),
            batch_size=self.preset.batch_size,
            device=self._device,
            training=split == "train",
        )

    def _claim(self, digest: str) -> None:
        """Make the model's folder; what other settings left there goes."""
        begun, own = self._folder / BEGUN_FILE, {"digest": digest}
        if not begun.is_file() or read_json(begun) != own:
            shutil.rmtree(self._folder, ignore_errors=True)
            write_json(begun, own)

    def _named(self, stage: str) -> ProgressCallback:
        def tell(one: Progress) -> None:
            self.progress(replace(one, stage=stage))

        return tell

    @property
    def _folder(self) -> Path:
        return self.root / self.name

    @property
    def _device(self) -> torch.device:
        return device_named(self.preset.device)
