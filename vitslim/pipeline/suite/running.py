"""A benchmark in its folder: what is trained and measured is kept, what is left is done by the next call."""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path
from typing import Any

from vitslim.bench.code import code_digest
from vitslim.bench.environment import environment
from vitslim.bench.suite import SUITE_FILE, TEACHER, Benchmark, Case, CaseResult, SuiteReport, TrainedModel
from vitslim.errors import ConfigError
from vitslim.files import digest_of, write_json
from vitslim.pipeline.devices import device_named
from vitslim.pipeline.suite.measuring import measure_case
from vitslim.pipeline.suite.preset import TIMING, Preset, read_preset
from vitslim.pipeline.suite.runner import Job, Runner
from vitslim.pipeline.suite.training import model_digest, train_model
from vitslim.progress import ProgressCallback, silent
from vitslim.runtime.versions import installed_version

_MEASURING_LIBRARIES = ("triton", "tensorrt", "tensorrt-rtx", "torch-pruning", "tome")
_CHANGING = ("load_average", "torch_threads", "cores", "cores_usable", "memory_gib", "platform")


class Suite:
    """The trainings and cases of a preset in their folder.

    Args:
        out: a new folder, or one of an earlier call. What other settings, versions, code or hardware gave is done
            again; a model that they trained stays beside the new one.
        preset: ``cpu``, ``gpu`` or a YAML file.
        overrides: assignments such as ``rounds=100``.

    Raises:
        ConfigError: a faulty preset, or the folder holds something else.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        out: str | Path,
        *,
        preset: str = "cpu",
        quick: bool = False,
        overrides: tuple[str, ...] = (),
    ) -> None:
        self.preset = read_preset(benchmark, preset, quick=quick, overrides=overrides)
        self._run: dict[str, Any] = {"benchmark": benchmark, "preset": Path(preset).stem, "quick": quick}
        self._out, self._quick = Path(out), quick
        if not self.preset.cases(quick=quick):
            raise ConfigError(f"preset {preset}: no group is marked quick: true, so that --quick measures nothing")
        self._runner = Runner(self._out, SUITE_FILE, self._run)

    def run(
        self,
        *,
        minutes: float | None = None,
        again: bool = False,
        command: str = "",
        progress: ProgressCallback = silent,
    ) -> SuiteReport:
        """Train and measure what is left and write suite.json; called again it goes on where it was stopped.

        Args:
            minutes: begin no case that would end later than that, and stop one that does.
            again: do what failed once more.
            command: as it is named in the report.

        Raises:
            MissingDependencyError: the preset's device is absent.
        """

        def write() -> None:
            write_json(self._out / SUITE_FILE, self.report(command).model_dump(mode="json"))

        device_named(self.preset.device)
        write()  # by which the next call knows the folder, whatever interrupts the first case
        self._runner.begin(minutes)
        run = partial(self._runner.run, progress=progress, again=again, after=write)
        run(self._trainings[:1])
        teacher = self._runner.outcomes(self._trainings).get(TEACHER)
        if teacher is not None and teacher.status == "measured":
            run(self._trainings[1:])
        if not self._runner.left(self._trainings):
            run(self._timings())
        return self.report(command)

    def report(self, command: str = "") -> SuiteReport:
        """All that is known now."""
        jobs, cases = [*self._trainings, *self._timings()], self.preset.cases(quick=self._quick)
        found = self._runner.outcomes(jobs).values()
        return SuiteReport(
            **self._run,
            command=command,
            settings=self.preset.model_dump(mode="json", include={*TIMING, "training"}),
            trained=[one for one in found if isinstance(one, TrainedModel)],
            cases=[one for one in found if isinstance(one, CaseResult)],
            left=[job.name for job in self._runner.left(jobs)],
            # A quick run can say something on some of them.
            targets=[target for target in self.preset.targets if any(map(target.is_measured_by, cases))],
        )

    @cached_property
    def _trainings(self) -> list[Job]:
        names = [TEACHER, *self.preset.students] if self.preset.training else []
        works = {name: partial(train_model, name, self.preset, self._out) for name in names}
        return [Job(name, model_digest(self.preset, name), work, {"model": name}) for name, work in works.items()]

    def _timings(self) -> list[Job]:
        """With the blocks that the conversions of the trained models chose."""
        trained = self._runner.outcomes(self._trainings)
        plans = {name: one.plan for name, one in trained.items() if isinstance(one, TrainedModel)}
        competitors = {
            name: one.model_copy(update={"plan": plans.get(name)}) for name, one in self.preset.competitors.items()
        }
        preset = self.preset.model_copy(update={"competitors": competitors})
        return [_timing(case, preset, self._versions) for case in preset.cases(quick=self._quick)]

    @cached_property
    def _versions(self) -> dict[str, Any]:
        known = {name: value for name, value in environment().items() if name not in _CHANGING}
        return {**known, **{name: installed_version(name) for name in _MEASURING_LIBRARIES}, "code": code_digest()}


def _timing(case: Case, preset: Preset, versions: dict[str, Any]) -> Job:
    entries = {**preset.models, **preset.competitors}
    smaller = preset.models[case.model].smaller if case.model in preset.models else None
    facts = {
        "case": case.model_dump(),
        "settings": preset.timing,
        "data": preset.training and preset.training.data,
        "entries": [entries[name] for name in (case.model, smaller, *case.competitors) if name in entries],
        "versions": versions,
    }
    return Job(case.name, digest_of(facts), partial(measure_case, case, preset), {"case": case}, alike=case.backend)
