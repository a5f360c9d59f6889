"""The benchmark of the planner in its folder: what is done is kept, what is left is done by the next call."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vitslim.bench import environment
from vitslim.files import write_json
from vitslim.pipeline.devices import device_named
from vitslim.pipeline.planner_bench.preset import read_preset
from vitslim.pipeline.planner_bench.task import TaskRun
from vitslim.planner.comparison import REPORT_FILE, PlannerBenchReport
from vitslim.planner.times import TIMED
from vitslim.progress import ProgressCallback, silent


class PlannerBench:
    """The comparison of a preset in its folder; what is done is kept, what is left is done by the next call.

    Args:
        preset: ``cpu``, ``gpu`` or a YAML file.
        overrides: assignments such as ``seeds=[0]``.

    Raises:
        ConfigError: a faulty preset.
    """

    def __init__(self, out: str | Path, *, preset: str = "cpu", overrides: Iterable[str] = ()) -> None:
        self.name, self.path = Path(preset).stem, Path(out) / REPORT_FILE
        self.preset = read_preset(preset, overrides)

    def run(
        self, *, minutes: float | None = None, command: str = "", progress: ProgressCallback = silent
    ) -> PlannerBenchReport:
        """Measure what is left and write planner-bench.json.

        Args:
            minutes: begin nothing after that.
            command: as it is named in the report.

        Raises:
            MissingDependencyError: the preset's device, or a runtime, is absent.
        """
        device_named(self.preset.device)
        end = None if minutes is None else time.monotonic() + 60 * minutes
        tasks = [
            TaskRun(name, task, self.preset, self.path.parent / name, progress, end)
            for name, task in self.preset.tasks.items()
            if task is not None
        ]
        for seed in self.preset.seeds:
            for task in tasks:
                task.train(seed)
                self._write(tasks, command)
        for task in tasks:
            task.check_times()
            task.measure_starts()
        return self._write(tasks, command)

    def _write(self, tasks: list[TaskRun], command: str) -> PlannerBenchReport:
        parts: dict[str, Any] = {
            "finetuned": {task.name: task.finetuned() for task in tasks},
            "images": {task.name: task.images() for task in tasks},
            "students": [one for task in tasks for one in task.students()],
            "planning": [one for task in tasks for one in task.ways.plannings()],
            "unreached": [one for task in tasks for one in task.ways.unreached()],
            "times": [one for task in tasks for one in task.checked_times()],
            "foretold": {task.name: task.foretold() for task in tasks},
            "left": [one for task in tasks for one in task.left()],
        }
        report = PlannerBenchReport(
            preset=self.name,
            command=command,
            timed=TIMED,
            settings=self.preset.model_dump(mode="json"),
            environment=environment(),
            **parts,
        )
        write_json(self.path, report.model_dump(mode="json"))
        return report
