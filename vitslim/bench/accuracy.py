"""What the accuracy benchmark finds, as it is written to accuracy.json."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from vitslim.bench.suite import Aim, Kind, SuiteRow
from vitslim.shapes import Result

ACCURACY_FILE = "accuracy.json"


class AccuracyRow(Result):
    """One trained model: held-out accuracy, cost, and its rows of the speed measurement.

    The teacher and the dense control are the same network and share the rows of dense.
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
    speed: list[SuiteRow]


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
    aims: list[Aim] = Field(default_factory=list[Aim])
