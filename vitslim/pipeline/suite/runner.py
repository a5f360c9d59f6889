"""Running the cases of a benchmark: each is kept in a file, and the next call goes on with what is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vitslim.bench.suite import CaseResult, TrainedModel
from vitslim.errors import ConfigError, VitslimError
from vitslim.files import read_json, write_json
from vitslim.pipeline.suite.process import Work, run_in_child
from vitslim.progress import Progress, ProgressCallback

Outcome = CaseResult | TrainedModel
_OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Outcome)


@dataclass(frozen=True)
class Job:
    """One case or training as the runner sees it.

    Args:
        digest: a number of all that the outcome depends on; an outcome with another one does not count.
        fields: of the outcome, beside what the work finds.
        alike: jobs with the same one are expected to last equally long; without one it may begin at any time.
    """

    name: str
    digest: str
    work: Work
    fields: Mapping[str, Any]
    alike: str = ""


class Runner:
    """Runs jobs and keeps their outcomes in the folder of a benchmark.

    Args:
        report: the file that every run keeps its report in.
        run: what must stand in it: which benchmark, of which preset, quick or not.

    Raises:
        ConfigError: the folder holds something else, another run among it.
    """

    def __init__(self, out: Path, report: str, run: Mapping[str, Any]) -> None:
        if out.exists() and not out.is_dir():
            raise ConfigError(f"output {out} is a file; name a folder")
        if out.is_dir() and any(out.iterdir()):
            found: Any = read_json(out / report) if (out / report).is_file() else None
            if not isinstance(found, dict) or any(found.get(key) != value for key, value in run.items()):
                wanted = ", ".join(f"{key}={value}" for key, value in run.items())
                raise ConfigError(
                    f"output folder {out} holds something else than {report} of {wanted}; name another one"
                )
        self._out = out
        self.begin(None)
        self._known: dict[str, Outcome] = {}
        for file in sorted((out / "cases").glob("*.json")):
            try:
                self._known[file.stem] = _OUTCOME.validate_python(read_json(file))
            except (ValidationError, VitslimError):
                continue  # of another version of vitslim, or cut off by hand: run again

    def outcomes(self, jobs: Sequence[Job]) -> dict[str, Outcome]:
        """How the jobs ended that did so with just these settings, versions, code and hardware."""
        found = {job.name: self._known.get(job.name) for job in jobs}
        return {job.name: one for job in jobs if (one := found[job.name]) is not None and one.digest == job.digest}

    def left(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs without an outcome, then those that were stopped: these wait until all others had their turn."""
        found = self.outcomes(jobs)
        stopped = [job for job in jobs if job.name in found and found[job.name].status == "too long"]
        return [*(job for job in jobs if job.name not in found), *stopped]

    def begin(self, minutes: float | None) -> None:
        """Begin a call that has so much time."""
        self._end = None if minutes is None else time.perf_counter() + 60 * minutes
        self._is_used = False  # whether a job came to an end in it

    def run(self, jobs: Sequence[Job], *, progress: ProgressCallback, again: bool, after: Callable[[], object]) -> None:
        """Run the jobs that are left and expected to end in time; the first one of a call is begun in any case.

        Args:
            again: run what failed once more.
            after: called when a job has ended.
        """
        left, found = self.left(jobs), self.outcomes(jobs)
        if again:
            failed = {name for name, one in found.items() if one.status not in ("measured", "too long")}
            left += [job for job in jobs if job.name in failed]
        for done, job in enumerate(left, start=1 + len(jobs) - len(left)):
            began = time.perf_counter()
            seconds = None if self._end is None else self._end - began
            if seconds is not None and self._is_used and seconds <= self._expected_seconds(job, jobs):
                continue
            progress(Progress(job.name, 0, None, "begun"))
            ended = run_in_child(job.work, seconds, progress)
            if ended["status"] == "paused" or (ended["status"] == "too long" and self._is_used):
                return  # it goes on, or had less than the time of a whole call
            seconds = time.perf_counter() - began
            one = _OUTCOME.validate_python({"digest": job.digest, "seconds": seconds, **job.fields, **ended})
            self._known[job.name] = one
            write_json(self._out / "cases" / f"{job.name}.json", one.model_dump(mode="json"))
            self._is_used = True
            after()
            progress(Progress(self._out.name, done, len(jobs), "cases", {"seconds": seconds}))

    def _expected_seconds(self, job: Job, jobs: Sequence[Job]) -> float:
        """How long a job took before, or the longest that is like it."""
        if job.name in self._known:
            return self._known[job.name].seconds
        alike = {one.name for one in jobs if job.alike and one.alike == job.alike}
        known = [one for name, one in self._known.items() if name in alike and one.status == "measured"]
        return max((one.seconds for one in known), default=0.0)
