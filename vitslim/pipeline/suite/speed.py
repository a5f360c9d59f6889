"""The suite: what is measured is kept, what is left is measured by the next call."""

from __future__ import annotations

from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vitslim.bench.code import code_digest
from vitslim.bench.environment import environment
from vitslim.bench.suite import DENSE, SUITE_FILE, Case, CaseResult, SuiteReport
from vitslim.errors import CheckpointError, ConfigError
from vitslim.files import read_json, write_json
from vitslim.pipeline.suite.measuring import measure_case
from vitslim.pipeline.suite.preset import SuitePreset, read_preset
from vitslim.pipeline.suite.process import Work
from vitslim.pipeline.suite.runner import Folder, Job, Runner, TimeBudget, digest_of, require_device
from vitslim.progress import ProgressCallback, silent

CASES_FOLDER = "cases"
_MEASURING_LIBRARIES = ("triton", "tensorrt", "tensorrt-rtx", "torch-pruning", "tome")
_HARDWARE = ("cpu", "gpu", "cuda", "driver")
_CHANGING = ("load_average", "torch_threads", "cores", "cores_usable", "memory_gib", "platform", *_HARDWARE)


def run_suite(
    out: str | Path,
    *,
    preset: str | SuitePreset = "cpu",
    quick: bool = False,
    minutes: float | None = None,
    again: bool = False,
    isolate: bool = True,
    measure: Work = measure_case,
    command: str = "vitslim bench suite",
    progress: ProgressCallback = silent,
) -> SuiteReport:
    """Measure what is left of a preset and write suite.json; called again it goes on where it was stopped.

    Args:
        out: a new folder, or one of an earlier call. Cases of other settings, versions, code or
            hardware are measured again.
        preset: ``cpu``, ``gpu``, a YAML file, or a preset itself.
        minutes: begin no case that would end later than that, and stop one that does.
        again: measure the cases that failed once more.
        isolate: each case in a child process.
        command: as it is named in the report.

    Raises:
        ConfigError: a faulty preset, or the folder holds something else.
        MissingDependencyError: the preset's device is absent.
    """
    suite = _Suite(Path(out), preset, quick=quick, command=command)
    require_device(suite.settings.device, suite.name)
    budget = TimeBudget(minutes)
    runner = Runner(
        suite.folder,
        measure,
        suite.settings,
        budget,
        progress,
        again=again,
        isolate=isolate,
        case_seconds=suite.settings.case_seconds,
    )
    runner.run(suite.jobs, after=suite.write)
    return suite.write()


def list_suite(out: str | Path, *, preset: str = "cpu", quick: bool = False) -> SuiteReport:
    """What ``run_suite`` would go on with: the cases that are there and the names of those left; nothing is written.

    Raises:
        ConfigError: a faulty preset, or the folder holds something else.
    """
    return _Suite(Path(out), preset, quick=quick, command="").report()


def read_suite(path: str | Path) -> SuiteReport:
    """A suite.json, or that of a folder.

    Raises:
        CheckpointError: it is not there, or is none.
    """
    file = Path(path) / SUITE_FILE if Path(path).is_dir() else Path(path)
    try:
        return SuiteReport.model_validate(read_json(file))
    except ValidationError as error:
        raise CheckpointError(f"{file} is no report of the suite ({error.error_count()} errors)") from None


class _Suite:
    """The cases of a preset in their folder."""

    def __init__(self, out: Path, preset: str | SuitePreset, *, quick: bool, command: str) -> None:
        self.settings = preset if isinstance(preset, SuitePreset) else read_preset(SuitePreset, preset, quick=quick)
        self.name = "own" if isinstance(preset, SuitePreset) else Path(preset).stem
        self._quick, self._command = quick, command
        self._cases = self.settings.cases(quick=quick)
        if not self._cases:
            raise ConfigError(f"preset {self.name}: no group is marked quick: true, so that --quick measures nothing")
        self.folder = Folder(out, CASES_FOLDER, CaseResult)
        self.folder.refuse_another_run(SUITE_FILE, self.name, quick=quick)
        versions = _versions()
        self.jobs = [_job(case, self.settings, versions) for case in self._cases]

    def report(self) -> SuiteReport:
        """All that is known now."""
        outcomes = {job.name: self.folder.outcome(job) for job in self.jobs}
        found = [outcome for outcome in outcomes.values() if outcome is not None]
        known = [outcome.environment for outcome in found if outcome.environment]
        targets = self.settings.targets
        return SuiteReport(
            preset=self.name,
            quick=self._quick,
            command=self._command,
            settings={**self.settings.settings(), "baseline": DENSE},
            environment=known[-1] if known else {},
            pieces=found,
            left=[name for name, one in outcomes.items() if one is None or one.status == "too long"],
            # A quick run can say something on some of them.
            aims=[target for target in targets if any(target.is_measured_by(case) for case in self._cases)],
        )

    def write(self) -> SuiteReport:
        """Keep it in suite.json."""
        report = self.report()
        write_json(self.folder.path / SUITE_FILE, report.model_dump(mode="json"))
        return report


def _job(case: Case, preset: SuitePreset, versions: dict[str, Any]) -> Job[CaseResult]:
    models = [case.model] if case.model in preset.models else []
    models += [smaller for name in models if (smaller := preset.models[name].smaller) is not None]
    competitors = [name for name in case.competitors if name in preset.competitors]
    facts = {
        "piece": case.model_dump(mode="json"),
        "settings": preset.settings(),
        "models": {name: preset.models[name].model_dump(mode="json") for name in models},
        "competitors": {name: preset.competitors[name].model_dump(mode="json") for name in competitors},
        "versions": versions,
    }
    return Job(case.name, digest_of(facts), case, partial(CaseResult, piece=case), alike=f"{case.kind} {case.backend}")


def _versions() -> dict[str, Any]:
    machine = environment()
    libraries = {name: value for name, value in machine.items() if name not in _CHANGING}
    libraries |= {name: _version(name) for name in _MEASURING_LIBRARIES}
    return {"libraries": libraries, "hardware": {name: machine.get(name) for name in _HARDWARE}, "code": code_digest()}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
