"""What the benchmark of the planner compares, and planner-bench.json."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from vitslim.files import digest_of
from vitslim.shapes import Result
from vitslim.train import WarmStartConfig

REPORT_FILE = "planner-bench.json"
PLANNER, FINE_TUNED, SIBLING = "planner", "dense-finetuned", "smaller-sibling"


class Way(Result):
    """One way to be as fast as a target asks for, before it is trained.

    Attributes:
        way: a rival's name, or the planner.
        share: its time as a share of the dense model's, measured in the same rounds when it was chosen.
        sibling: arguments of a smaller model, in place of a plan.
    """

    task: str
    runtime: str
    speedup: float
    way: str
    entries: list[dict[str, Any]]
    plan: dict[str, Any] | None
    share: float
    warm_start: WarmStartConfig | None = None
    sibling: dict[str, Any] | None = None

    @property
    def digest(self) -> str:
        """Of what is trained: ways that lead to the same plan share their trainings."""
        return digest_of([self.plan, self.warm_start, self.sibling], 12)


class Student(Result):
    """One way at one target.

    Attributes:
        way: a rival's name, or the planner.
        share: its time as a share of the dense model's, measured in the same rounds; ``None`` before that.
        top1: by seed, of the images of the task that are held out.
    """

    task: str
    runtime: str
    speedup: float
    way: str
    entries: list[dict[str, Any]]
    digest: str
    share: float | None
    top1: dict[str, float]
    loss: dict[str, float]
    macs: int | None
    params: int | None


class PlannerBenchReport(Result):
    """planner-bench.json.

    Attributes:
        finetuned: top-1 of the dense model with the students' budget, by task and seed.
        planning: what each search took and on which machine all times of its table were measured, by task and runtime.
        unreached: rivals that are not fast enough at any strength, by task, runtime and speedup.
        times: relative errors of predicted times of random plans, by task and runtime.
        foretold: Spearman's ρ between figures before training and the error of all students made of plans, by task.
        left: what is not trained or measured yet.
        environment: of the last call.
        timed: what the speeds are ratios of; ``None`` in older reports: of medians.
    """

    preset: str
    command: str
    settings: dict[str, Any]
    environment: dict[str, Any]
    finetuned: dict[str, dict[str, float]]
    students: list[Student]
    planning: list[dict[str, Any]]
    unreached: list[dict[str, Any]]
    times: list[dict[str, Any]]
    images: dict[str, int]
    foretold: dict[str, dict[str, float]] = Field(default_factory=dict[str, dict[str, float]])
    left: list[str] = Field(default_factory=list[str])
    timed: str | None = None
