"""The output folder of a run: which stages are done, and for which inputs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, cast

from vitslim.errors import CheckpointError, ConfigError
from vitslim.files import read_json, write_json, write_text

STAGES_FILE = "stages.json"
RECIPE_FILE = "recipe.yaml"


class RunFolder:
    """Remembers finished stages by a digest of everything that they depend on.

    A stage is skipped when its digest is the one it was finished with and its files are still there. The digest of a
    stage covers that of the stage before, so a change early on makes everything after it run again.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._digest = ""

    def begin(self, resolved_recipe: str, *, overwrite: bool) -> None:
        """Take the folder for a run of this recipe.

        Raises:
            ConfigError: it holds something else and ``overwrite`` was not given.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"output {self.path} is a file; name a folder")
        earlier = self.path / RECIPE_FILE
        occupied = self.path.is_dir() and any(self.path.iterdir())
        same = earlier.is_file() and earlier.read_text() == resolved_recipe
        if occupied and not same and not overwrite:
            what = "the run of another recipe" if earlier.is_file() else "files that no run of vitslim wrote"
            raise ConfigError(f"output folder {self.path} holds {what}; pass --overwrite or another folder")
        write_text(earlier, resolved_recipe)

    def enter(self, stage: str, inputs: Any, *outputs: str) -> bool:
        """Whether a stage must run; its digest becomes the present one."""
        text = json.dumps([self._digest, stage, inputs], sort_keys=True, default=str)
        self._digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        done = self._done().get(stage) == self._digest
        return not (done and all((self.path / name).exists() for name in outputs))

    def finish(self, stage: str) -> None:
        """Note that the stage last entered is done."""
        write_json(self.path / STAGES_FILE, {**self._done(), stage: self._digest})

    def read(self, name: str) -> Any:
        """A JSON document of the folder, or ``None``."""
        return read_json(self.path / name) if (self.path / name).exists() else None

    def _done(self) -> dict[str, str]:
        if not (self.path / STAGES_FILE).exists():
            return {}
        found = read_json(self.path / STAGES_FILE)
        if not isinstance(found, dict):
            raise CheckpointError(f"{self.path / STAGES_FILE} is damaged; delete it to run all stages again")
        return cast("dict[str, str]", found)
