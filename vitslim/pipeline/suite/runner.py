"""Running the cases of a benchmark: each is kept in a file, and the next call goes on with what is left."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import ValidationError

from vitslim.bench.suite import ATTEMPTS, Outcome
from vitslim.errors import ConfigError, MissingDependencyError, VitslimError
from vitslim.files import read_json, write_json
from vitslim.pipeline.devices import device_named
from vitslim.pipeline.suite.process import Work, attempt, run_in_child
from vitslim.progress import Progress, ProgressCallback

_MORE_TIME = 1.2  # times what a case had that was stopped

R = TypeVar("R", bound=Outcome)


@dataclass(frozen=True)
class Job(Generic[R]):
    """One case as the runner sees it.

    Args:
        digest: a number of all that the outcome depends on; an outcome with another one does not count.
        argument: what the work is given.
        outcome: builds the outcome out of its fields.
        alike: jobs with the same one are expected to last equally long.
        pauses: the work stops by itself when its time is over and goes on at the next call.
    """

    name: str
    digest: str
    argument: object
    outcome: Callable[..., R]
    alike: str = ""
    pauses: bool = False


class TimeBudget:
    """The time that one call has."""

    def __init__(self, minutes: float | None) -> None:
        self.is_used = False  # whether a case came to an end in it
        self._end = None if minutes is None else time.perf_counter() + 60 * minutes

    @property
    def seconds_left(self) -> float | None:
        """Until the end; ``None`` without one."""
        return None if self._end is None else self._end - time.perf_counter()

    def fits(self, seconds: float) -> bool:
        """Whether a case of that length ends in time. The first one is begun in any case."""
        left = self.seconds_left
        return left is None or not self.is_used or seconds <= left


class Folder(Generic[R]):
    """The outcomes of earlier calls: one file for each case, in ``name`` inside the output folder.

    Raises:
        ConfigError: the output folder holds something else, the run of another preset among it.
    """

    def __init__(self, out: Path, name: str, kind: type[R]) -> None:
        self.path, self.cases = out, out / name
        if out.exists() and not out.is_dir():
            raise ConfigError(f"output {out} is a file; name a folder")
        if out.is_dir() and any(out.iterdir()) and not self.cases.is_dir():
            raise ConfigError(f"output folder {out} holds files that this benchmark did not write; name another folder")
        self.known: dict[str, R] = {}
        for file in sorted(self.cases.glob("*.json")):
            try:
                self.known[file.stem] = kind.model_validate(read_json(file))
            except (ValidationError, VitslimError):
                continue  # of another version of vitslim, or cut off by hand: run again

    def refuse_another_run(self, report: str, preset: str, *, quick: bool) -> None:
        """Refuse the folder of another preset: its cases have the same names and would be replaced one by one.

        Raises:
            ConfigError: the report in the folder is of another preset, or none.
        """
        file, wanted = self.path / report, {"preset": preset, "quick": quick}
        earlier: Any = read_json(file) if file.is_file() else wanted
        if not isinstance(earlier, dict) or any(earlier.get(key) != value for key, value in wanted.items()):
            run = f"{'quick ' if quick else ''}run of preset {preset}"
            raise ConfigError(f"{file} is not the report of a {run}; name another folder")

    def make(self) -> None:
        """Make the folder: whatever interrupts the first case, the next call knows it for one of the benchmark's."""
        self.cases.mkdir(parents=True, exist_ok=True)

    def outcome(self, job: Job[R]) -> R | None:
        """How a case ended with just these settings, versions, code and hardware."""
        known = self.known.get(job.name)
        return known if known is not None and known.digest == job.digest else None

    def write(self, job: Job[R], found: R) -> None:
        """Keep how a case ended, and how often in a row it was stopped."""
        known = self.outcome(job)
        if found.status == "too long" and known is not None and known.status == "too long":
            found = found.model_copy(update={"tries": known.tries + 1})
        write_json(self.cases / f"{job.name}.json", found.model_dump(mode="json"))
        self.known[job.name] = found


@dataclass(frozen=True)
class Runner(Generic[R]):
    """Runs what is left of the cases of a folder.

    Args:
        work: what a case is given to, with the settings; a function that a child process can import.
        again: run what failed once more.
        isolate: each case in a child process of its own.
        case_seconds: what a case is expected to need before one like it was run.
    """

    folder: Folder[R]
    work: Work
    settings: object
    budget: TimeBudget
    progress: ProgressCallback
    again: bool = False
    isolate: bool = True
    case_seconds: float = 0.0

    def run(self, jobs: Sequence[Job[R]], after: Callable[[], object] = lambda: None) -> bool:
        """Run the cases that have no outcome yet; ``after`` is called when one has ended.

        Returns:
            Whether all came to an end, whatever end that was; otherwise the time was over for some.
        """
        stage, unit = self.folder.path.name, "cases"
        self.folder.make()
        left = [job for job in jobs if self._is_wanted(job)]
        done, skipped = len(jobs) - len(left), False
        self.progress(Progress(stage, done, len(jobs), unit))
        for job in left:
            found = self._run(job, jobs)
            if found is None:
                skipped = True
                if job.pauses:
                    break
                continue
            self.folder.write(job, found)
            self.budget.is_used = True
            done += 1
            after()
            self.progress(Progress(stage, done, len(jobs), unit, {"seconds": found.seconds}))
        return not skipped

    def _run(self, job: Job[R], jobs: Sequence[Job[R]]) -> R | None:
        """How a case ended; ``None`` where there was no time to say."""
        seconds = self.budget.seconds_left
        if job.pauses and seconds is not None and seconds <= 0:
            return None
        if not job.pauses and not self.budget.fits(self._expected_seconds(job, jobs)):
            return None
        self.progress(Progress(job.name, 0, None, "begun"))
        began = time.perf_counter()
        run = partial(run_in_child, stops=job.pauses) if self.isolate else attempt
        found = run(self.work, job.argument, self.settings, seconds, self.progress)
        if found["status"] == "too long" and (job.pauses or self.budget.is_used):
            return None  # it had less than a whole budget, or goes on where it paused
        return job.outcome(digest=job.digest, seconds=time.perf_counter() - began, **found)

    def _is_wanted(self, job: Job[R]) -> bool:
        """Whether a case is to be run; one that was stopped is, twice and when there is clearly more time."""
        known = self.folder.outcome(job)
        if known is None or known.status == "measured":
            return known is None
        left = self.budget.seconds_left
        has_more_time = left is None or left > _MORE_TIME * known.seconds
        return self.again or (known.status == "too long" and (known.tries < ATTEMPTS or has_more_time))

    def _expected_seconds(self, job: Job[R], jobs: Sequence[Job[R]]) -> float:
        """How long a case took before, or the longest like it, or the preset's guess."""
        known = self.folder.known
        before = known.get(job.name)
        if before is not None and before.status in ("measured", "too long"):
            return before.seconds
        alike = [known[one.name] for one in jobs if one.alike == job.alike and one.name in known]
        return max((one.seconds for one in alike if one.status == "measured"), default=self.case_seconds)


def digest_of(facts: Mapping[str, Any]) -> str:
    """A number of plain data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def require_device(device: str, preset: str) -> None:
    """Refuse a preset whose device is absent, and name the preset.

    Raises:
        MissingDependencyError: it is not there.
    """
    try:
        device_named(device)
    except MissingDependencyError as error:
        raise MissingDependencyError(f"preset {preset}: {error}") from None
