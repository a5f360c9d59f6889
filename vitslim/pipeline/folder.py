"""The output folder of a run: which stages are done, and for which inputs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from vitslim.errors import CheckpointError, ConfigError
from vitslim.files import digest_of, is_scratch, read_json, write_json, write_text
from vitslim.pipeline.staging import Staging, has_company
from vitslim.shapes import Result

STAGES_FILE = "stages.json"
RECIPE_FILE = "recipe.yaml"

# All that a run has written that was refused before it converted anything; the analysis is kept in a cache as well.
_BEFORE_RESULTS = {RECIPE_FILE, STAGES_FILE, "analysis.json", "plots"}


class Stages(Result):
    """stages.json: the digest of each finished stage, of the one being worked at, and whether all of a run was done."""

    finished: dict[str, str] = Field(default_factory=dict)
    begun: dict[str, str] = Field(default_factory=dict)
    complete: bool = False


class RunFolder:
    """Remembers finished stages by a digest of everything that they depend on.

    A stage is skipped when its digest is the one it was finished with and its files are still there. The digest of a
    stage covers that of the stage before, so a change early on makes everything after it run again.

    A folder that holds anything but an unfinished run of the same recipe is not changed before the new run is done: the
    work goes on in a copy, ``path``, see ``Staging``. Used as a context, entered after ``begin``, it brings the copy
    home at the end; an error leaves the copy for the next start with this recipe.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._staging = Staging(self.path)
        self._has_worked = False
        self.is_continued = False  # whether the stage last entered was interrupted with these same inputs
        self._digest = ""
        self._passed: dict[str, str] = {}

    def begin(self, resolved_recipe: str, *, overwrite: bool) -> None:
        """Take the folder for a run of this recipe.

        Raises:
            ConfigError: it holds something else and ``overwrite`` was not given, or another process works at it.
        """
        self.check(resolved_recipe, overwrite=overwrite)
        stages = self._stages()
        if self._must_be_kept(resolved_recipe) and not has_company():
            self._staging.lock()
            if not (self._staging.is_whole and _is_run_of(self._staging.path, resolved_recipe)):
                self._staging.copy()
            self.path = self._staging.path
            stages = self._stages()
        # The record comes first: by it a folder without results is known as ours.
        self._write(stages.model_copy(update={"complete": False}))
        write_text(self.path / RECIPE_FILE, resolved_recipe)

    def check(self, resolved_recipe: str, *, overwrite: bool) -> None:
        """Refuse what ``begin`` would refuse, and write nothing but what a killed run had all but written."""
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"output {self.path} is a file; name a folder")
        self._staging.recover()
        if self._has_results() and not _is_run_of(self.path, resolved_recipe) and not overwrite:
            is_run = (self.path / RECIPE_FILE).is_file()
            what = "the run of another recipe" if is_run else "files that no run of vitslim wrote"
            raise ConfigError(f"output folder {self.path} holds {what}; pass --overwrite or another folder")

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        is_copy, home = self.path == self._staging.path, self._staging.target
        if kind is None:
            self._write(self._stages().model_copy(update={"complete": True}))
            if is_copy:
                self._staging.commit()
        elif is_copy and not self._has_worked:
            self._staging.drop()
        self._staging.leave()
        self.path = home

    def _has_results(self) -> bool:
        """Whether anything lies here but what a run leaves that was refused before its first result."""
        if not self.path.is_dir():
            return False
        names = {path.name for path in self.path.iterdir() if not is_scratch(path)}
        return bool(names - _BEFORE_RESULTS if STAGES_FILE in names else names)

    def _must_be_kept(self, resolved_recipe: str) -> bool:
        if not self._has_results():
            return False
        return not _is_run_of(self.path, resolved_recipe) or self._stages().complete

    def enter(self, stage: str, inputs: Any, *outputs: str) -> bool:
        """Whether a stage must run; its digest becomes the present one."""
        self._digest = digest_of([self._digest, stage, inputs])
        known = self._stages()
        if known.finished.get(stage) == self._digest and all((self.path / name).exists() for name in outputs):
            self._passed[stage] = self._digest
            return False
        self.is_continued = known.begun == {stage: self._digest}
        self._has_worked = True
        # What other stages finished after this point belongs to another past.
        self._write(Stages(finished=self._passed, begun={stage: self._digest}))
        return True

    def finish(self, stage: str) -> None:
        """Note that the stage last entered is done."""
        self._passed[stage] = self._digest
        self._write(Stages(finished=self._passed))

    def read(self, name: str) -> Any:
        """A JSON document of the folder, or ``None``."""
        return read_json(self.path / name) if (self.path / name).exists() else None

    def discard(self, *names: str) -> None:
        """Remove files and folders that an earlier run left, where they are there."""
        for name in names:
            place = self.path / name
            if place.is_dir():
                shutil.rmtree(place)
            else:
                place.unlink(missing_ok=True)

    def _stages(self) -> Stages:
        path = self.path / STAGES_FILE
        if not path.exists():
            return Stages()
        try:
            return Stages.model_validate(read_json(path))
        except ValidationError:
            raise CheckpointError(f"{path} is damaged; delete it to run all stages again") from None

    def _write(self, stages: Stages) -> None:
        write_json(self.path / STAGES_FILE, stages.model_dump())


def _is_run_of(folder: Path, resolved_recipe: str) -> bool:
    recipe = folder / RECIPE_FILE
    return recipe.is_file() and recipe.read_bytes() == resolved_recipe.encode()
