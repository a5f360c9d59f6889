"""The output folder of a run: which stages are done, and for which inputs."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from vitslim.errors import CheckpointError, ConfigError
from vitslim.files import read_json, write_json, write_text
from vitslim.shapes import Result

STAGES_FILE = "stages.json"
RECIPE_FILE = "recipe.yaml"

# All that a run has written that was refused before it converted anything; the analysis is kept in a cache as well.
_BEFORE_RESULTS = {RECIPE_FILE, STAGES_FILE, "analysis.json", "plots"}


class Stages(Result):
    """stages.json: the digest of each finished stage, and of the one that was being worked at."""

    finished: dict[str, str] = Field(default_factory=dict)
    begun: dict[str, str] = Field(default_factory=dict)


class RunFolder:
    """Remembers finished stages by a digest of everything that they depend on.

    A stage is skipped when its digest is the one it was finished with and its files are still there. The digest of a
    stage covers that of the stage before, so a change early on makes everything after it run again.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.is_continued = False  # whether the stage last entered was interrupted with these same inputs
        self._digest = ""
        self._passed: dict[str, str] = {}

    def begin(self, resolved_recipe: str, *, overwrite: bool) -> None:
        """Take the folder for a run of this recipe.

        Raises:
            ConfigError: it holds something else and ``overwrite`` was not given.
        """
        self.check(resolved_recipe, overwrite=overwrite)
        write_text(self.path / RECIPE_FILE, resolved_recipe)

    def check(self, resolved_recipe: str, *, overwrite: bool) -> None:
        """Refuse what ``begin`` would refuse, and write nothing."""
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"output {self.path} is a file; name a folder")
        earlier = self.path / RECIPE_FILE
        present = {place.name for place in self.path.iterdir()} if self.path.is_dir() else set[str]()
        occupied = present and not (RECIPE_FILE in present <= _BEFORE_RESULTS)
        same = earlier.is_file() and earlier.read_text() == resolved_recipe
        if occupied and not same and not overwrite:
            what = "the run of another recipe" if earlier.is_file() else "files that no run of vitslim wrote"
            raise ConfigError(f"output folder {self.path} holds {what}; pass --overwrite or another folder")

    def enter(self, stage: str, inputs: Any, *outputs: str) -> bool:
        """Whether a stage must run; its digest becomes the present one."""
        text = json.dumps([self._digest, stage, inputs], sort_keys=True, default=str)
        self._digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        known = self._stages()
        if known.finished.get(stage) == self._digest and all((self.path / name).exists() for name in outputs):
            self._passed[stage] = self._digest
            return False
        self.is_continued = known.begun == {stage: self._digest}
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
