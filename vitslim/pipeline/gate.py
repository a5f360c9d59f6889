"""The gate of quantized files: what they lose and how fast they are, both measured, decides whether they are kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
from pydantic import BaseModel, SerializeAsAny
from torch import nn

from vitslim.bench import environment
from vitslim.bench.clock import Clock, interleaved_latencies_ms, processor_clock
from vitslim.errors import ConfigError, VitslimError
from vitslim.files import json_text, replace_together
from vitslim.models import preprocessing
from vitslim.pipeline.images import DataLike, labels_for, open_loader
from vitslim.pipeline.runners import RunnerModule
from vitslim.runtime import Precision, Runner
from vitslim.shapes import Result
from vitslim.targets import Opening, Target, Timing
from vitslim.train import EvalResult
from vitslim.train import evaluate as measure

IMAGES = 1000
"""Held out, on which a file is judged."""
BATCHES = (1, 8)
_ROUNDS, _SECONDS = 30, 60.0


class QuantizedExport(Result):
    """A quantized file with what proves it, or speaks against it.

    Attributes:
        path: of the file; in a folder ``rejected`` where it failed.
        written: what its maker says of it.
        model: accuracy of the model itself, float32 in torch; ``file`` that of the file, with its agreement and KL;
            ``None`` where nothing here runs it.
        loss: points of accuracy that the file loses; without labels of agreement. ``most`` it may.
        latency_ms: medians, by batch size and precision, all of one batch size in the same rounds; on one thread of
            the CPU, of engines on the GPU. Empty where it could not be timed.
        failures: why it was rejected; empty where it was not.
        notes: what is not proven, and why.
    """

    path: str
    written: SerializeAsAny[BaseModel]
    model: EvalResult
    file: EvalResult | None
    loss: float | None
    most: float
    latency_ms: dict[int, dict[str, float]]
    failures: list[str]
    notes: list[str]
    environment: dict[str, Any]


def keep_or_reject(
    made: Path,
    path: Path,
    judged: Judged,
    file: EvalResult | None,
    most: float,
    latency_ms: dict[int, dict[str, float]],
    precision: str,
    written: BaseModel,
    notes: Sequence[str] = (),
) -> QuantizedExport:
    """Put a file, its companions and the proof into place; into ``rejected`` where accuracy or time speaks against it.

    Args:
        made: in a folder of its own with what belongs to it.
        path: of the file where it is kept.
        precision: its name in ``latency_ms``.
    """
    loss = None if file is None else judged.points(file)
    rivals = {batch: times for batch, times in latency_ms.items() if set(times) - {precision}}
    failures = [*_lost(loss, most, judged.what), *_slow(rivals, precision)]
    if latency_ms and not rivals:
        notes = [*notes, "its speed is not proven: nothing in float could be timed beside it"]
    place = path.parent / "rejected" if failures else path.parent
    found = QuantizedExport(
        path=str(place / path.name),
        written=written,
        model=judged.own,
        file=file,
        loss=loss,
        most=most,
        latency_ms=latency_ms,
        failures=failures,
        notes=[*dict.fromkeys(notes)],
        environment=environment(),
    )
    proof = made.with_name(f"{path.name}.proof.json")
    proof.write_text(json_text(found.model_dump(mode="json"), proof), "utf-8")
    place.mkdir(parents=True, exist_ok=True)
    replace_together({one: place / one.name for one in sorted(made.parent.iterdir()) if one.is_file()})
    return found


class Judged:
    """A model with the images that its quantized file is made and judged with."""

    def __init__(self, model: nn.Module, data: DataLike) -> None:
        self.model, self._data = model.eval(), data
        self._loader = open_loader(data, model, split="val", limit=IMAGES, **labels_for(model))
        self.own = measure(model, self._loader)
        self.what = "agreement" if self.own.top1 is None else "accuracy"

    def calibration(self, count: int, seed: int = 0) -> torch.Tensor:
        """Images of the training split, without augmentation."""
        loader = open_loader(self._data, self.model, split="train", limit=count, labels="ignore", seed=seed)
        images = torch.cat([batch.images for batch in loader])[:count]
        if len(images) < 2:
            raise ConfigError(f"ranges are taken from images of the training split; {len(images)} is too few")
        return images

    def result(self, runner: Runner) -> EvalResult:
        return measure(RunnerModule(runner, self.model), self._loader, teacher=self.model)

    def loss(self, runner: Runner) -> float:
        return self.points(self.result(runner))

    def points(self, found: EvalResult) -> float:
        if self.own.top1 is not None and found.top1 is not None:
            return 100 * (self.own.top1 - found.top1)
        return 100 * (1.0 - (found.agreement or 0.0))


def latencies_ms(
    target: Target,
    model: nn.Module,
    quantized: Mapping[str, Callable[[Sequence[int]], Runner]],
    floats: Sequence[Precision],
    notes: list[str],
    *,
    device: str = "cpu",
    clock: Clock = processor_clock,
) -> dict[int, dict[str, float]]:
    """Median milliseconds by batch size and precision, of quantized files and of those in float in the same rounds.

    Args:
        quantized: opens the files for some batch sizes, by the name of their precision.
        floats: precisions that ``target`` writes ``model`` in; what does not run here is left out.
        notes: gets one for each of these.
    """
    found: dict[int, dict[str, float]] = {}
    image, backend = preprocessing(model), target.backends[0]
    opening = Opening(backend.name, None if backend.needs_gpu else device, threads=1)
    for sizes in [(batch,) for batch in BATCHES] if backend.per_batch else [BATCHES]:
        with tempfile.TemporaryDirectory(prefix="vitslim-timed-") as folder, ExitStack() as stack:
            runners = {name: stack.enter_context(opened(sizes)) for name, opened in quantized.items()}
            for precision in floats:
                place = Path(folder) / precision
                place.mkdir()
                try:
                    opened, _ = target.open_to_time(model, place, Timing(precision, sizes, device, opening))
                except VitslimError as error:
                    notes.append(f"it was not timed beside {precision}: {error}")
                    continue
                runners[precision] = stack.enter_context(opened)
            for batch in sizes:
                images = torch.randn(batch, image.channels, *image.image_size)
                calls = {name: _call(runner, images) for name, runner in runners.items()}
                samples = interleaved_latencies_ms(calls, rounds=_ROUNDS, seconds=_SECONDS, clock=clock)
                found[batch] = {name: median(times) for name, times in samples.items()}
    return found


def _call(runner: Runner, images: torch.Tensor) -> Any:
    given = images if runner.inputs[0].dtype != torch.uint8 else (255 * torch.rand(_bytes_shape(runner, images))).byte()
    placed = given.to(runner.device)
    return lambda: runner.run(placed)


def _bytes_shape(runner: Runner, images: torch.Tensor) -> Sequence[int]:
    return [wanted or given for wanted, given in zip(runner.inputs[0].shape, images.shape, strict=True)]


def _lost(loss: float | None, most: float, what: str) -> list[str]:
    is_lost = loss is not None and loss > most
    return [f"it loses {loss:.2f} points of {what}; {most:g} are allowed"] if is_lost else []


def _slow(latency: Mapping[int, Mapping[str, float]], precision: str) -> list[str]:
    """A reason where no batch size gains over the fastest float."""
    shares = {batch: (times[precision], *_fastest(times, precision)) for batch, times in latency.items()}
    if not shares or any(own < rival for own, rival, _ in shares.values()):
        return []
    told = ", ".join(
        f"{own:.2f} ms against {rival:.2f} ms in {name} at batch {batch}"
        for batch, (own, rival, name) in shares.items()
    )
    return [f"it is no faster than without {precision.upper()} on this machine: {told}"]


def _fastest(times: Mapping[str, float], precision: str) -> tuple[float, str]:
    return min((value, name) for name, value in times.items() if name != precision)
