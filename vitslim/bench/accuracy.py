"""What the accuracy benchmark finds, as it is written to accuracy.json."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from vitslim.bench.suite import GainTarget, Kind, Outcome, SuiteRow
from vitslim.shapes import Result

ACCURACY_FILE = "accuracy.json"


class AccuracyRow(Result):
    """One trained model: held-out accuracy, cost, and its rows of the speed measurement.

    The teacher and dense-finetuned are the same network and share the rows of dense.
    """

    model: str
    kind: Kind
    top1: float  # share of held-out images, 0..1
    agreement: float | None  # share of images with the teacher's class
    images: int  # held-out ones
    params: int
    macs: int
    steps: int  # of the last training
    trained_images_per_second: float
    speed: list[SuiteRow] = Field(default_factory=list[SuiteRow])


class TrainedModel(Outcome):
    """How the training of one model ended, as it is kept beside the model."""

    row: AccuracyRow | None = None  # without its speed, which is measured after all trainings
    drawn_images_per_second: float | None = None  # the teacher's, of a set of several batches


class AccuracyReport(Result):
    """accuracy.json: all rows there are so far, and what is left."""

    preset: str
    quick: bool
    command: str
    settings: dict[str, Any]
    environment: dict[str, Any]  # in which the last model was trained
    drawn_images_per_second: float | None  # of a set of several batches
    rows: list[AccuracyRow]
    left: list[str]
    notes: list[str]
    aims: list[GainTarget] = Field(default_factory=list[GainTarget])
