"""Running the suite piece by piece: what is measured is kept, what is left is measured by the next call."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from vitslim.bench.code import code_digest
from vitslim.bench.environment import environment
from vitslim.bench.suite import DENSE, SUITE_FILE, TRIES, Piece, PieceResult, SuiteReport
from vitslim.errors import CheckpointError, ConfigError, VitslimError
from vitslim.files import read_json, write_json
from vitslim.pipeline.suite.measuring import Measure, measure_piece
from vitslim.pipeline.suite.preset import Preset, read_preset, require_device
from vitslim.pipeline.suite.workers import SameProcess, Worker
from vitslim.progress import Progress, ProgressCallback, silent

PIECES_FOLDER = "pieces"
_MEASURING_LIBRARIES = ("triton", "tensorrt", "tensorrt-rtx", "torch-pruning", "tome")
_HARDWARE = ("cpu", "gpu", "cuda", "driver")
_MORE_TIME = 1.2  # times what a piece had that was stopped


def run_suite(
    out: str | Path,
    *,
    preset: str | Preset = "cpu",
    quick: bool = False,
    minutes: float | None = None,
    again: bool = False,
    isolate: bool = True,
    measure: Measure = measure_piece,
    command: str = "vitslim bench suite",
    progress: ProgressCallback = silent,
) -> SuiteReport:
    """Measure what is left of a preset and write suite.json; called again it goes on where it was stopped.

    Args:
        out: a new folder, or one of an earlier call. Pieces of other settings, versions, code or
            hardware are measured again.
        preset: ``cpu``, ``gpu``, a YAML file, or a preset itself.
        minutes: begin no piece that would end later than that, and stop one that does.
        again: measure the pieces that failed once more.
        isolate: each piece in a child process.
        command: as it is named in the report.

    Raises:
        ConfigError: a faulty preset, or the folder holds something else.
        MissingDependencyError: the preset's device is absent.
    """
    settings = preset if isinstance(preset, Preset) else read_preset(preset, quick=quick)
    name = "own" if isinstance(preset, Preset) else Path(preset).stem
    require_device(settings.device, name)
    pieces = _pieces(settings, name, quick=quick)
    folder = Folder(Path(out), settings, environment())
    folder.claim(name, quick=quick)
    folder.make()
    sitting = _Sitting(minutes)
    report = _report(folder, pieces, settings, name, quick, command)
    missing = [piece for piece in pieces if folder.wants(piece, sitting.seconds_left(), again=again)]
    done = len(pieces) - len(missing)
    progress(Progress("suite", done, len(pieces), "pieces"))
    with (Worker if isolate else SameProcess)(settings, measure) as worker:
        for piece in missing:
            if not sitting.fits(folder.expected_seconds(piece)):
                continue
            progress(Progress(piece.name, 0, None, "begun"))
            result = worker.run(piece, folder.digest(piece), sitting.seconds_left())
            if result.status == "too long" and sitting.begun:
                continue  # it had less than a whole sitting
            sitting.begun = True
            folder.write(result)
            done += 1
            report = _report(folder, pieces, settings, name, quick, command)
            write_json(folder.path / SUITE_FILE, report.model_dump(mode="json"))
            progress(Progress("suite", done, len(pieces), "pieces", {"seconds": result.seconds}))
    write_json(folder.path / SUITE_FILE, report.model_dump(mode="json"))
    return report


def list_suite(out: str | Path, *, preset: str = "cpu", quick: bool = False) -> SuiteReport:
    """What ``run_suite`` would go on with: the pieces that are there and the names of those left; nothing is written.

    Raises:
        ConfigError: a faulty preset, or the folder holds something else.
    """
    settings, name = read_preset(preset, quick=quick), Path(preset).stem
    pieces = _pieces(settings, name, quick=quick)
    folder = Folder(Path(out), settings, environment())
    folder.claim(name, quick=quick)
    return _report(folder, pieces, settings, name, quick, command="")


def read_suite(path: str | Path) -> SuiteReport:
    """A suite.json, or that of a folder.

    Raises:
        CheckpointError: it is not there, or is none.
    """
    file = Path(path) / SUITE_FILE if Path(path).is_dir() else Path(path)
    try:
        return SuiteReport.model_validate(read_json(file))
    except ValidationError as error:
        raise CheckpointError(f"{file} is no report of the suite ({error.error_count()} faults)") from None


class Folder:
    """The output folder: one file per piece, each with the digest of what it was measured with."""

    def __init__(self, path: Path, preset: Preset, machine: dict[str, Any]) -> None:
        self.path = path
        self._preset = preset
        self._versions = _versions(machine)
        self._known: dict[str, PieceResult] = {}

    def claim(self, preset: str, *, quick: bool) -> None:
        """Read what an earlier call left; nothing is written.

        Raises:
            ConfigError: the folder holds something else, the run of another preset among it.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"output {self.path} is a file; name a folder")
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / PIECES_FOLDER).is_dir():
            raise ConfigError(f"output folder {self.path} holds files that no suite wrote; name another folder")
        self._refuse_another_run(preset, quick)
        for file in sorted((self.path / PIECES_FOLDER).glob("*.json")):
            try:
                result = PieceResult.model_validate(read_json(file))
            except (ValidationError, VitslimError):
                continue  # of another version of vitslim, or cut off by hand: measured again
            self._known[result.piece.name] = result

    def make(self) -> None:
        """Make the folder; whatever interrupts the first piece, the next call knows it for one of the suite's."""
        (self.path / PIECES_FOLDER).mkdir(parents=True, exist_ok=True)

    def _refuse_another_run(self, preset: str, quick: bool) -> None:
        # Its pieces have the same names and would be replaced one by one.
        if not (self.path / SUITE_FILE).is_file():
            return
        earlier = read_json(self.path / SUITE_FILE)
        if not isinstance(earlier, dict):
            raise ConfigError(f"{self.path / SUITE_FILE} is no report of the suite; name another folder")
        known = cast("dict[str, Any]", earlier)
        if (known.get("preset"), known.get("quick")) != (preset, quick):
            kind = "quick " if known.get("quick") else ""
            raise ConfigError(
                f"output folder {self.path} holds the {kind}run of preset {known.get('preset')}; name another folder"
            )

    def result(self, piece: Piece) -> PieceResult | None:
        """What a piece gave with just these settings, versions, code and hardware."""
        known = self._known.get(piece.name)
        return known if known is not None and known.digest == self.digest(piece) else None

    def wants(self, piece: Piece, seconds: float | None, *, again: bool = False) -> bool:
        """Whether a piece is to be measured; one that was stopped is, twice and when there is clearly more time."""
        known = self.result(piece)
        if known is None or known.status == "measured":
            return known is None
        has_more_time = seconds is None or seconds > _MORE_TIME * known.seconds
        return again or (known.status == "too long" and (known.tries < TRIES or has_more_time))

    def write(self, result: PieceResult) -> None:
        """Keep what a piece gave, and how often it was stopped in a row."""
        known = self.result(result.piece)
        if result.status == "too long" and known is not None and known.status == "too long":
            result = result.model_copy(update={"tries": known.tries + 1})
        write_json(self.path / PIECES_FOLDER / f"{result.piece.name}.json", result.model_dump(mode="json"))
        self._known[result.piece.name] = result

    def expected_seconds(self, piece: Piece) -> float:
        """How long a piece took before, or the longest of its backend, or the preset's guess."""
        before = self._known.get(piece.name)
        if before is not None and before.status in ("measured", "too long"):
            return before.seconds
        alike = [
            known.seconds
            for known in self._known.values()
            if known.status == "measured" and (known.piece.kind, known.piece.backend) == (piece.kind, piece.backend)
        ]
        return max(alike, default=self._preset.piece_seconds)

    def digest(self, piece: Piece) -> str:
        """A number of all that a piece's figures depend on."""
        preset = self._preset
        models = [piece.model] if piece.model in preset.models else []
        models += [smaller for name in models if (smaller := preset.models[name].smaller) is not None]
        facts = {
            "piece": piece.model_dump(mode="json"),
            "settings": preset.settings(),
            "models": {name: preset.models[name].model_dump(mode="json") for name in models},
            "competitors": {
                name: preset.competitors[name].model_dump(mode="json")
                for name in piece.competitors
                if name in preset.competitors
            },
            "versions": self._versions,
        }
        text = json.dumps(facts, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Sitting:
    """The time that one call has."""

    def __init__(self, minutes: float | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.begun = False  # whether a piece was measured in it
        self._clock = clock
        self._end = None if minutes is None else clock() + 60 * minutes

    def seconds_left(self) -> float | None:
        """Until the end; ``None`` without one."""
        return None if self._end is None else max(1.0, self._end - self._clock())

    def fits(self, seconds: float) -> bool:
        """Whether a piece of that length ends in time. The first one is tried in any case."""
        return self._end is None or not self.begun or self._clock() + seconds <= self._end


def _pieces(settings: Preset, name: str, *, quick: bool) -> list[Piece]:
    if pieces := settings.pieces(quick=quick):
        return pieces
    raise ConfigError(f"preset {name}: no group is marked quick: true, so that --quick has nothing to measure")


def _report(
    folder: Folder, pieces: Sequence[Piece], settings: Preset, name: str, quick: bool, command: str
) -> SuiteReport:
    found = [result for piece in pieces if (result := folder.result(piece)) is not None]
    known = [result.environment for result in found if result.environment]
    return SuiteReport(
        preset=name,
        quick=quick,
        command=command,
        settings={**settings.settings(), "baseline": DENSE},
        environment=known[-1] if known else {},
        pieces=found,
        left=[piece.name for piece in pieces if (one := folder.result(piece)) is None or one.status == "too long"],
        aims=settings.aims_of(pieces),
    )


def _versions(machine: dict[str, Any]) -> dict[str, Any]:
    changing = ("load_average", "torch_threads", "cores", "cores_usable", "memory_gib", "platform", *_HARDWARE)
    libraries = {name: value for name, value in machine.items() if name not in changing}
    libraries |= {name: _version(name) for name in _MEASURING_LIBRARIES}
    hardware = {name: machine.get(name) for name in _HARDWARE}
    return {"libraries": libraries, "hardware": hardware, "code": code_digest()}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
