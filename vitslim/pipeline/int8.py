"""Exports in INT8, kept where they are proven to be worth it: what they lose, and how fast they are, both measured."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pydantic import BaseModel, SerializeAsAny
from torch import nn

from vitslim.bench import environment
from vitslim.bench.clock import interleaved_latencies_ms, processor_clock
from vitslim.errors import ConfigError, VitslimError
from vitslim.files import json_text, replace_together, scratch_beside
from vitslim.models import preprocessing
from vitslim.pipeline.images import DataLike, labels_for, open_loader
from vitslim.pipeline.runners import RunnerModule
from vitslim.runtime import Precision, Runner
from vitslim.shapes import Result
from vitslim.targets import ExportRequest, Opening, Target, Timing
from vitslim.targets.base import Judge
from vitslim.train import EvalResult
from vitslim.train import evaluate as measure

IMAGES = 1000
"""Held out, on which a file is judged."""
BATCHES = (1, 8)
_FLOATS: tuple[Precision, ...] = ("fp32", "bf16")
_ROUNDS, _SECONDS = 30, 60.0


class Int8Export(Result):
    """A file in INT8 with what proves it, or speaks against it.

    Attributes:
        path: of the file; in a folder ``rejected`` where it failed.
        written: what the target says of it.
        model: accuracy of the model itself, float32 in torch; ``file`` that of the file, with its agreement and KL.
        loss: points of accuracy that the file loses; without labels of agreement. ``most`` it may.
        latency_ms: medians on one thread, by batch size and precision, all of one batch size in the same rounds.
        failures: why it was rejected; empty where it was not.
    """

    path: str
    written: SerializeAsAny[BaseModel]
    model: EvalResult
    file: EvalResult
    loss: float
    most: float
    latency_ms: dict[int, dict[str, float]]
    failures: list[str]
    environment: dict[str, Any]


def export_int8(
    target: Target, request: ExportRequest, options: Mapping[str, Any], data: DataLike, max_drop: float
) -> Int8Export:
    """Write a file in INT8, measure what it loses and how fast it is, and keep it aside where either speaks against it.

    Args:
        data: its training split is for calibration, its held-out one for the judgement.
        max_drop: points of accuracy (of agreement without labels) that may be lost.

    Raises:
        ConfigError: too few images.
    """
    judged = _Judged(request.model(), data)
    with scratch_beside(request.path) as scratch:
        folder = scratch / "files"
        asked = replace(
            request,
            path=folder / request.path.name,
            calibration=judged.calibration,
            judge=Judge(judged.loss, max_drop),
        )
        written = target.write(asked, **options)
        with target.load(asked.path, Opening(threads=1)) as runner:
            file = judged.result(runner)
            latency = _latencies(target, judged.model, runner)
        loss = judged.points(file)
        failures = [*_lost(loss, max_drop, judged.what), *_slow(latency)]
        place = request.path.parent / "rejected" if failures else request.path.parent
        found = Int8Export(
            path=str(place / request.path.name),
            written=written,
            model=judged.own,
            file=file,
            loss=loss,
            most=max_drop,
            latency_ms=latency,
            failures=failures,
            environment=environment(),
        )
        proof = folder / f"{request.path.name}.proof.json"
        proof.write_text(json_text(found.model_dump(mode="json"), proof), "utf-8")
        place.mkdir(parents=True, exist_ok=True)
        replace_together({one: place / one.name for one in sorted(folder.iterdir()) if one.is_file()})
    return found


class _Judged:
    """A model with the images that its file in INT8 is made and judged with."""

    def __init__(self, model: nn.Module, data: DataLike) -> None:
        self.model, self._data = model.eval(), data
        self._loader = open_loader(data, model, split="val", limit=IMAGES, **labels_for(model))
        self.own = measure(model, self._loader)
        self.what = "agreement" if self.own.top1 is None else "accuracy"

    def calibration(self, count: int) -> torch.Tensor:
        """Images of the training split, without augmentation."""
        loader = open_loader(self._data, self.model, split="train", limit=count, labels="ignore")
        images = torch.cat([batch.images for batch in loader])[:count]
        if len(images) < 2:
            raise ConfigError(f"int8 takes its ranges from images of the training split; {len(images)} is too few")
        return images

    def result(self, runner: Runner) -> EvalResult:
        return measure(RunnerModule(runner, self.model), self._loader, teacher=self.model)

    def loss(self, runner: Runner) -> float:
        return self.points(self.result(runner))

    def points(self, found: EvalResult) -> float:
        if self.own.top1 is not None and found.top1 is not None:
            return 100 * (self.own.top1 - found.top1)
        return 100 * (1.0 - (found.agreement or 0.0))


def _latencies(target: Target, model: nn.Module, quantized: Runner) -> dict[int, dict[str, float]]:
    """Of the file and of those in float, in the same rounds."""
    found: dict[int, dict[str, float]] = {}
    image = preprocessing(model)
    with tempfile.TemporaryDirectory(prefix="vitslim-int8-") as folder, ExitStack() as stack:
        runners: dict[str, Runner] = {"int8": quantized}
        for precision in _FLOATS:
            place = Path(folder) / precision
            place.mkdir()
            try:
                opened, _ = target.open_to_time(model, place, Timing(precision, BATCHES, "cpu", Opening(threads=1)))
            except VitslimError:  # what does not run here is no rival
                continue
            runners[precision] = stack.enter_context(opened)
        for batch in BATCHES:
            images = torch.randn(batch, image.channels, *image.image_size)
            calls = {name: _call(runner, images) for name, runner in runners.items()}
            samples = interleaved_latencies_ms(calls, rounds=_ROUNDS, seconds=_SECONDS, clock=processor_clock)
            found[batch] = {name: median(times) for name, times in samples.items()}
    return found


def _call(runner: Runner, images: torch.Tensor) -> Any:
    given = images if runner.inputs[0].dtype != torch.uint8 else (255 * torch.rand(_bytes_shape(runner, images))).byte()
    return lambda: runner.run(given)


def _bytes_shape(runner: Runner, images: torch.Tensor) -> Sequence[int]:
    return [wanted or given for wanted, given in zip(runner.inputs[0].shape, images.shape, strict=True)]


def _lost(loss: float, most: float, what: str) -> list[str]:
    return [f"it loses {loss:.2f} points of {what}; {most:g} are allowed"] if loss > most else []


def _slow(latency: Mapping[int, Mapping[str, float]]) -> list[str]:
    """A reason where no batch size gains over the fastest float."""
    shares = {batch: (times["int8"], *_fastest(times)) for batch, times in latency.items()}
    if any(own < rival for own, rival, _ in shares.values()):
        return []
    told = ", ".join(
        f"{own:.2f} ms against {rival:.2f} ms in {name} at batch {batch}"
        for batch, (own, rival, name) in shares.items()
    )
    return [f"it is no faster than without INT8 on this machine: {told}"]


def _fastest(times: Mapping[str, float]) -> tuple[float, str]:
    return min((value, name) for name, value in times.items() if name != "int8")
