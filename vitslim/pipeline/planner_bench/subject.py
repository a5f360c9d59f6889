"""The dense model of one task, and what is measured of it once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from vitslim import checkpoint
from vitslim.analysis import AnalysisReport, analyze_once
from vitslim.errors import VitslimError
from vitslim.files import digest_of, read_json, write_json
from vitslim.models import init_from_scratch_
from vitslim.opening import open_model
from vitslim.pipeline.choices import advise, plan_all
from vitslim.pipeline.inputs import analysis_images, file_state, open_source
from vitslim.pipeline.planner_bench.preset import PlannerPreset, Task
from vitslim.pipeline.planning.images import open_meter
from vitslim.pipeline.running import METRICS_FILE
from vitslim.pipeline.side_by_side import run_side_by_side
from vitslim.planner import DamageMeter, RuntimeConfig, SharesOfPlans, StepTimes, probes_once
from vitslim.planner.times import times_folder
from vitslim.plans import ModelPlan
from vitslim.progress import ProgressCallback
from vitslim.recipe import AnalyzeSection, ModelSection, Recipe
from vitslim.train import DistillConfig
from vitslim.trunk import plan_of


class Subject:
    """The dense model of a task, trained first if need be, in a folder that keeps what is measured of it.

    Args:
        folder: of the task.
    """

    def __init__(self, name: str, task: Task, preset: PlannerPreset, folder: Path, progress: ProgressCallback) -> None:
        # However the folder is named: what is known is found again.
        self.name, self.task, self.preset, self.folder = name, task, preset, folder.resolve()
        self.progress = progress

    @cached_property
    def weights(self) -> Any:
        """The dense model's name, and the state of its file where it was trained here."""
        return [self.start, file_state(ModelSection(name=self.start))]

    @cached_property
    def dense(self) -> nn.Module:
        return open_model(self.start).eval()

    @cached_property
    def start(self) -> str:
        """The dense model's name, or the folder that it was saved in, trained for this task if need be."""
        if self.task.teacher is None and self.task.model == ModelSection(name=self.task.model.name):
            return self.task.model.name
        if self.task.teacher is None:
            if not checkpoint.is_saved_model(self.folder / "dense"):
                checkpoint.save(open_source(self.recipe(0, model=self.task.model)), self.folder / "dense")
        elif not (self.folder / "dense" / METRICS_FILE).is_file():
            start = self.from_nothing({})
            recipe = self.recipe(0, model=ModelSection(name=start), distill=self.task.teacher)
            run_side_by_side({"dense": recipe}, self.folder, overwrite=True, progress=self.progress)
        return str(self.folder / "dense")

    def recipe(self, seed: int, **sections: Any) -> Recipe:
        given: dict[str, Any] = {
            "data": self.task.data,
            "distill": self.task.distill.model_copy(update={"seed": seed}),
            "device": self.preset.device,
            "seed": seed,
            "report": False,
        }
        if "model" not in sections:
            given["model"] = ModelSection(name=self.start)
        return Recipe(**{**given, **sections})

    def from_nothing(self, changes: Mapping[str, Any], training: DistillConfig | None = None) -> str:
        """The folder of a model of this kind with random weights, or with those that a training gave it."""
        section = self.task.model
        name = "-".join(["start", *(f"{key}-{value}" for key, value in changes.items())])
        place, trained = self.folder / name, self.folder / f"{name}-trained"
        if not checkpoint.is_saved_model(place):
            model = open_model(
                section.name,
                pretrained=False,
                img_size=section.img_size,
                num_classes=section.num_classes,
                **{**section.options, **changes},
            )
            checkpoint.save(init_from_scratch_(model), place)
        return str(place if training is None or not changes else trained)

    def shares(self, runtime: RuntimeConfig) -> SharesOfPlans:
        return SharesOfPlans(self.dense, runtime, times_folder())

    def times(self, runtime: RuntimeConfig) -> StepTimes:
        return StepTimes(plan_of(self.dense), probes_once(self.dense, runtime, times_folder(), progress=self.progress))

    @cached_property
    def meter(self) -> DamageMeter:
        return open_meter(self.recipe(0), self.dense, self.preset.planner, self.folder)

    @cached_property
    def analysis(self) -> AnalysisReport:
        section = AnalyzeSection(images=512, replacement_images=64)
        images = analysis_images(self.recipe(0), self.task.data, section, self.dense)
        return analyze_once(
            self.dense,
            images,
            images=section.images,
            replacement_images=section.replacement_images,
            progress=self.progress,
        )

    def plan(self, entries: Sequence[Mapping[str, Any]]) -> ModelPlan | None:
        """The plan of some methods, ``None`` where they refuse this model."""
        dense = plan_of(self.dense)
        try:
            return plan_all(entries, dense, advise(entries, dense, self.analysis))[0]
        except VitslimError:
            return None

    def once(self, name: str, inputs: Any, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What some work found, read from its file where it was done before with the same inputs."""
        path = self.folder / f"{name}-{digest_of(inputs, 12)}.json"
        if not path.is_file():
            write_json(path, work())
        return read_json(path)

    def found(self, name: str) -> list[Path]:
        """Files of what some work found."""
        return sorted(self.folder.glob(f"{name}-*.json"))
