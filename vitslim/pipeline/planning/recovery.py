"""Successive halving: short trainings of all trials, longer ones of those that recover best."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil, log2
from pathlib import Path

from torch import nn

from vitslim.checkpoint import load
from vitslim.files import digest_of, write_json
from vitslim.pipeline.devices import on_device
from vitslim.pipeline.images import data_config, open_loader
from vitslim.pipeline.planning.images import count_images
from vitslim.pipeline.side_by_side import run_side_by_side
from vitslim.planner import DamageMeter, PlannerConfig, Rung, Trial
from vitslim.progress import Progress, ProgressCallback
from vitslim.recipe import Recipe
from vitslim.train import DistillConfig, WarmStartConfig


class Recovery:
    """Trains trials side by side, in folders of their own.

    Args:
        folder: takes ``trials/``.
    """

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        config: PlannerConfig,
        meter: DamageMeter,
        folder: Path,
        progress: ProgressCallback,
    ) -> None:
        self.recipe, self.model, self.config, self.meter = recipe, model, config, meter
        self.folder, self.progress = folder, progress
        self.steps = 0  # of all trainings so far

    def train(self, trials: list[Trial]) -> list[Trial]:
        """The trials with their rungs: all are trained for a short while, the better half for twice as long, and on."""
        found = list(trials)
        running = list(range(len(trials)))
        for _, steps in rungs(self.recipe, self.model, self.config, len(trials)):
            place = self.folder / "trials" / f"{steps}-steps"
            names = {index: digest_of(found[index].plan) for index in running}
            recipes = {names[index]: self._short(found[index], steps, place) for index in running}
            called = {name: f"trial {index + 1}/{len(found)}, {steps} steps" for index, name in names.items()}
            run_side_by_side(recipes, place, overwrite=True, progress=self._calling(called), ray=self.config.ray)
            for index in running:
                student = on_device(load(place / names[index]), self.recipe.device).eval()
                rung = Rung(steps=steps, damage=self.meter.of(student))
                found[index] = found[index].model_copy(update={"rungs": [*found[index].rungs, rung]})
            self.steps += steps * len(running)
            running = sorted(running, key=lambda index: score(found[index]))[: ceil(len(running) / 2)]
        return found

    def _calling(self, called: Mapping[str, str]) -> ProgressCallback:
        """Reports under what trials are ``called``, who run under the digests of their plans."""

        def report(progress: Progress) -> None:
            name, colon, stage = progress.stage.partition(":")
            self.progress(replace(progress, stage=f"{called.get(name, name)}{colon}{stage}"))

        return report

    def _short(self, trial: Trial, steps: int, place: Path) -> Recipe:
        path = place / f"{digest_of(trial.plan)}.plan.json"
        write_json(path, trial.plan)
        distill, data = self.recipe.distill or DistillConfig(), self.recipe.data
        assert data is not None
        # Shards are read in order: nothing of them can be kept apart.
        reserved = 0 if data.source.startswith("wds/") else count_images(self.recipe, self.model, self.config)
        return self.recipe.model_copy(
            update={
                "plan": str(path),
                "convert": (),
                "analyze": None,
                "data": data.model_copy(update={"reserved": reserved}),
                "warm_start": WarmStartConfig(steps=0, tensorboard=False),
                "distill": distill.model_copy(update={"steps": steps, "epochs": None, "tensorboard": False}),
                "evaluate": False,
                "export": None,
                "bench": None,
                "report": False,
                "finetune_dense": False,
            }
        )


def rungs(recipe: Recipe, model: nn.Module, config: PlannerConfig, trials: int) -> list[tuple[int, int]]:
    """How many trials are trained, and for how many steps, twice as many each time."""
    if trials < 2 or not config.recovery:
        return []
    total, rounds = final_steps(recipe, model) * config.recovery, ceil(log2(trials))
    found: list[tuple[int, int]] = []
    steps = 0
    for _ in range(rounds):
        steps = max(config.shortest, round(total / rounds / trials), 2 * steps)
        found.append((trials, steps))
        trials = ceil(trials / 2)
    return found


def score(trial: Trial) -> float:
    """What trials are compared by: the loss to the labels where there are any, else the divergence."""
    return trial.last.kl if trial.last.loss is None else trial.last.loss


def final_steps(recipe: Recipe, model: nn.Module) -> int:
    """Of the distillation that the student is going to have."""
    distill, data = recipe.distill, recipe.data
    assert data is not None
    if distill is None:
        return 0
    if distill.steps is not None:
        return distill.steps
    loader = open_loader(
        data_config(data), model, split="train", training=True, batch_size=data.batch_size,
        limit=data.train_limit, labels="ignore",
    )  # fmt: skip
    return max(1, round((distill.epochs or 1.0) * len(loader)))
