import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pipeline.planned import Planner, stand_in
from tests.pipeline.tiny import MODEL, RECIPE
from vitslim.cli.main import main
from vitslim.pipeline import export, run
from vitslim.recipe import read_recipe

TINY = [
    *("--no-pretrained", "--img-size", "32", "--num-classes", "4"),
    *(word for name, value in MODEL["options"].items() for word in ("--set", f"model.options.{name}={value}")),
]
"""Options of ``convert`` that make ``builtin`` the tiny model."""
TRAINING = ("--batch-size", 16, "--set", "steps=2", "--set", "tensorboard=false", "--set", "precision=fp32")
"""Options of a short ``train``."""


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, and what it wrote to both streams."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line of the error."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, self.err
        assert self.err.rstrip().endswith(lines[0]), self.err
        assert "Traceback" not in self.err + self.out
        return lines[0].removeprefix("error: ")


Command = Callable[..., Outcome]


@pytest.fixture
def vitslim(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in this process, through the real entry point."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*words: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main([str(word) for word in words])
        streams = capsys.readouterr()
        return Outcome(int(leaving.value.code or 0), streams.out, streams.err)

    return call


@pytest.fixture(scope="session")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved student with its ONNX file. Shared between tests: never change it."""
    folder = tmp_path_factory.mktemp("saved") / "student"
    run(read_recipe({"model": MODEL, "convert": [{"method": "skipat"}], "report": False}), folder)
    export(str(folder))
    return folder


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense model of the same start, saved. Shared between tests: never change it."""
    folder = tmp_path_factory.mktemp("saved") / "plain"
    run(read_recipe({"model": MODEL, "report": False}), folder)
    return folder


@pytest.fixture
def one_block(tmp_path: Path) -> Path:
    """A saved model of one block: an export takes time in proportion to the depth."""
    options = {**MODEL["options"], "depth": 1}
    run(read_recipe({"model": {**MODEL, "options": options}, "report": False}), tmp_path / "one_block")
    return tmp_path / "one_block"


@pytest.fixture
def copied(student: Path, tmp_path: Path) -> Path:
    """A copy of the student to change."""
    return Path(shutil.copytree(student, tmp_path / "copied"))


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """The tiny recipe without a fine-tuned dense model, as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**RECIPE, "finetune_dense": False}))
    return path


@pytest.fixture
def planner(monkeypatch: pytest.MonkeyPatch) -> Planner:
    """In place of the one that measures."""
    return stand_in(monkeypatch)
